"""The car dealer in Flask-RESTful, Flask-JWT-Extended and Flask-SQLAlchemy, the assignment's usual stack.

Run with `waitress-serve flask_app:app`.
"""

import os
from datetime import timedelta

from flask import Flask, request
from flask_jwt_extended import JWTManager, create_access_token, jwt_required
from flask_restful import Api, Resource, abort, fields, marshal_with, reqparse
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import BigInteger, String, event, insert, select
from sqlalchemy.engine import Engine
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from werkzeug.security import check_password_hash, generate_password_hash


class Base(DeclarativeBase):
    """The declarative base that Flask-SQLAlchemy extends."""


app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]
app.config["JWT_SECRET_KEY"] = os.environ["JWT_SECRET"]
app.config["JWT_ACCESS_TOKEN_EXPIRES"] = timedelta(seconds=int(os.environ["JWT_TTL"]))
app.config["PROPAGATE_EXCEPTIONS"] = True  # else Flask-RESTful makes a refused token a 500
db = SQLAlchemy(app, model_class=Base)
jwt = JWTManager(app)
api = Api(app)


@event.listens_for(Engine, "connect")
def set_pragmas(connection, _record):
    """Put a new SQLite connection in WAL mode with durable commits."""
    if not os.environ["DATABASE_URL"].startswith("sqlite"):
        return
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


class User(db.Model):
    """An account."""

    id: Mapped[int] = mapped_column(primary_key=True)
    username: Mapped[str] = mapped_column(String(80), unique=True)
    password: Mapped[str]


class Car(db.Model):
    """A car of the stock."""

    id: Mapped[int] = mapped_column(primary_key=True)
    mark: Mapped[str] = mapped_column(String(255), unique=True)
    max_speed: Mapped[int] = mapped_column(BigInteger)
    distance: Mapped[int] = mapped_column(BigInteger)
    handler: Mapped[str] = mapped_column(String(255))
    stock: Mapped[str] = mapped_column(String(255))


with app.app_context():
    db.create_all()


@jwt.user_identity_loader
def user_identity(user):
    """Tell what of a user goes into a token."""
    return str(user.id)


@jwt.user_lookup_loader
def user_lookup(_header, claims):
    """Load the user that a token names."""
    return db.session.get(User, int(claims["sub"]))


def number(value):
    """Accept a JSON integer that is not negative."""
    if type(value) is not int or not 0 <= value < 2**53:
        raise ValueError("must be an integer from 0 to 9007199254740991")
    return value


def text(value):
    """Accept a JSON string of 1 to 255 characters."""
    if not isinstance(value, str) or not 1 <= len(value) <= 255:
        raise ValueError("must be text of 1 to 255 characters")
    return value


car_types = {"max_speed": number, "distance": number, "handler": text, "stock": text}
car_fields = {
    "mark": fields.String,
    "max_speed": fields.Integer,
    "distance": fields.Integer,
    "handler": fields.String,
    "stock": fields.String,
}
car_parser = reqparse.RequestParser()
for name, check in car_types.items():
    car_parser.add_argument(name, type=check, required=True, nullable=False, location="json")
account_parser = reqparse.RequestParser()
for name in ("username", "password"):
    account_parser.add_argument(name, type=text, required=True, nullable=False, location="json")


def read_line(number_of_line, line):
    """Check one car of an upload; reqparse knows objects only, so arrays are checked by hand."""
    try:
        return {name: check(line[name]) for name, check in {"mark": text, **car_types}.items()}
    except (KeyError, TypeError, ValueError) as error:
        abort(400, Error=f"item {number_of_line}: {error}")


class Register(Resource):
    """Accounts are made here."""

    def post(self):
        """Create an account."""
        account = account_parser.parse_args()
        db.session.add(User(username=account.username, password=generate_password_hash(account.password)))
        try:
            db.session.commit()
        except IntegrityError:
            abort(400, Error="User already exists")
        return {"Message": "User created. Try to auth"}, 201


class Auth(Resource):
    """Tokens are given here."""

    def post(self):
        """Give a token for a name and its password."""
        account = account_parser.parse_args()
        user = db.session.scalar(select(User).filter_by(username=account.username))
        if user is None or not check_password_hash(user.password, account.password):
            abort(401, Error="Invalid username or password")
        return {"access_token": create_access_token(identity=user)}


def find_car(mark):
    """Return the car with that mark, or answer 404."""
    car = db.session.scalar(select(Car).filter_by(mark=mark))
    if car is None:
        abort(404, Error="Auto with that mark not found")
    return car


class Auto(Resource):
    """One car."""

    method_decorators = (jwt_required(),)

    @marshal_with(car_fields)
    def get(self, mark):
        """Show the car."""
        return find_car(mark)

    def post(self, mark):
        """Create the car."""
        db.session.add(Car(mark=mark, **car_parser.parse_args()))
        try:
            db.session.commit()
        except IntegrityError:
            abort(400, Error="Auto with that mark exists")
        return {"Message": "Auto created"}, 201

    def put(self, mark):
        """Replace the data of the car."""
        values = car_parser.parse_args()
        car = find_car(mark)
        for name, value in values.items():
            setattr(car, name, value)
        db.session.commit()
        return {"Message": "Auto updated"}, 202


class Stock(Resource):
    """All cars."""

    method_decorators = (jwt_required(),)

    @marshal_with(car_fields)
    def get(self):
        """List the cars, ordered by mark."""
        return db.session.scalars(select(Car).order_by(Car.mark)).all()

    def post(self):
        """Create all cars of an array, or none."""
        rows = [read_line(index, line) for index, line in enumerate(request.get_json(), 1)]
        try:
            db.session.execute(insert(Car), rows)
            db.session.commit()
        except IntegrityError:
            abort(400, Error="Auto with that mark exists")
        return {"Message": f"{len(rows)} autos created"}, 201


api.add_resource(Register, "/register")
api.add_resource(Auth, "/auth")
api.add_resource(Auto, "/auto/<mark>")
api.add_resource(Stock, "/stock")
