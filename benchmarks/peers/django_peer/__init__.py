"""The car dealer in Django REST Framework and simplejwt.

Run with `DJANGO_SETTINGS_MODULE=django_peer.settings gunicorn "django.core.wsgi:get_wsgi_application()"`.
"""
