"""Settings of the Django peer: no more apps and middleware than an API needs."""

import os
from datetime import timedelta
from urllib.parse import urlsplit

SECRET_KEY = os.environ["JWT_SECRET"]
DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "django_peer.urls"
USE_TZ = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "rest_framework", "django_peer"]
MIDDLEWARE = ["django.middleware.security.SecurityMiddleware", "django.middleware.common.CommonMiddleware"]
SQLITE = {
    "ENGINE": "django.db.backends.sqlite3",
    "NAME": os.environ["DATABASE_URL"].removeprefix("sqlite:///"),
    "OPTIONS": {
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;",
        "transaction_mode": "IMMEDIATE",
    },
}
URL = urlsplit(os.environ["DATABASE_URL"])
POSTGRESQL = {
    "ENGINE": "django.db.backends.postgresql",
    "NAME": URL.path[1:],
    "USER": URL.username,
    "PASSWORD": URL.password,
    "HOST": URL.hostname,
    "PORT": URL.port,
}
DATABASES = {"default": {**(SQLITE if URL.scheme == "sqlite" else POSTGRESQL), "CONN_MAX_AGE": None}}
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework_simplejwt.authentication.JWTAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
}
SIMPLE_JWT = {"ACCESS_TOKEN_LIFETIME": timedelta(seconds=int(os.environ["JWT_TTL"]))}
