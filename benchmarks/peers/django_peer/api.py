"""Serializers and views of the Django peer."""

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from rest_framework import generics, mixins, serializers
from rest_framework.exceptions import ValidationError
from rest_framework.permissions import AllowAny
from rest_framework.response import Response

from .models import Car


class AccountSerializer(serializers.ModelSerializer):
    """The body of a registration."""

    class Meta:
        """Name and password."""

        model = User
        fields = ("username", "password")

    def create(self, validated_data):
        """Create the account with Django's own password hashing."""
        return User.objects.create_user(**validated_data)


class CarSerializer(serializers.ModelSerializer):
    """One car; its mark comes from the path."""

    class Meta:
        """The five fields of a car."""

        model = Car
        fields = ("mark", "max_speed", "distance", "handler", "stock")
        read_only_fields = ("mark",)


class BulkCreateSerializer(serializers.ListSerializer):
    """Many cars, created by one statement."""

    def create(self, validated_data):
        """Create all cars or none."""
        return Car.objects.bulk_create(Car(**values) for values in validated_data)


class CarLineSerializer(serializers.ModelSerializer):
    """One car of an upload; the database minds that marks are unique, instead of one query for each."""

    mark = serializers.CharField(max_length=255)

    class Meta:
        """The five fields of a car."""

        model = Car
        fields = ("mark", "max_speed", "distance", "handler", "stock")
        list_serializer_class = BulkCreateSerializer


def save_new(serializer, **values):
    """Save what is new, or answer 400 when a mark exists."""
    try:
        with transaction.atomic():
            serializer.save(**values)
    except IntegrityError as error:
        raise ValidationError({"Error": "Auto with that mark exists"}) from error


class Register(generics.CreateAPIView):
    """Accounts are made here."""

    authentication_classes = ()
    permission_classes = (AllowAny,)
    serializer_class = AccountSerializer

    def create(self, request, *args, **kwargs):
        """Create an account."""
        super().create(request, *args, **kwargs)
        return Response({"Message": "User created. Try to auth"}, status=201)


class Auto(mixins.RetrieveModelMixin, generics.GenericAPIView):
    """One car."""

    queryset = Car.objects.all()
    serializer_class = CarSerializer
    lookup_field = "mark"

    def get(self, request, mark):
        """Show the car."""
        return self.retrieve(request, mark)

    def post(self, request, mark):
        """Create the car."""
        serializer = self.get_serializer(data=request.data)
        serializer.is_valid(raise_exception=True)
        save_new(serializer, mark=mark)
        return Response({"Message": "Auto created"}, status=201)

    def put(self, request, mark):
        """Replace the data of the car."""
        serializer = self.get_serializer(self.get_object(), data=request.data)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response({"Message": "Auto updated"}, status=202)


class Stock(generics.ListAPIView):
    """All cars."""

    queryset = Car.objects.order_by("mark")
    serializer_class = CarSerializer

    def post(self, request):
        """Create all cars of an array, or none."""
        serializer = CarLineSerializer(data=request.data, many=True)
        serializer.is_valid(raise_exception=True)
        save_new(serializer)
        return Response({"Message": f"{len(serializer.instance)} autos created"}, status=201)
