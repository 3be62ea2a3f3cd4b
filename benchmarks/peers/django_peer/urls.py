"""Routes of the Django peer."""

from django.urls import path
from rest_framework_simplejwt.views import TokenObtainPairView

from .api import Auto, Register, Stock

urlpatterns = [
    path("register", Register.as_view()),
    path("auth", TokenObtainPairView.as_view()),
    path("auto/<str:mark>", Auto.as_view()),
    path("stock", Stock.as_view()),
]
