"""The data of the Django peer; accounts are Django's own."""

from django.core.validators import MaxValueValidator
from django.db import models


class Car(models.Model):
    """A car of the stock."""

    mark = models.CharField(max_length=255, unique=True)
    max_speed = models.PositiveBigIntegerField(validators=[MaxValueValidator(2**53 - 1)])
    distance = models.PositiveBigIntegerField(validators=[MaxValueValidator(2**53 - 1)])
    handler = models.CharField(max_length=255)
    stock = models.CharField(max_length=255)
