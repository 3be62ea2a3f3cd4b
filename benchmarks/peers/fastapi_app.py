"""The car dealer in FastAPI, SQLModel and PyJWT, in the manner of FastAPI's tutorial and its full-stack template.

Run with `uvicorn fastapi_app:app`.
"""

import os
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated

import jwt
from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import OAuth2PasswordBearer
from jwt.exceptions import InvalidTokenError
from pwdlib import PasswordHash
from sqlalchemy import BigInteger, event, insert
from sqlalchemy.exc import IntegrityError
from sqlmodel import Field, Session, SQLModel, create_engine, select

SECRET_KEY = os.environ["JWT_SECRET"]
ALGORITHM = "HS256"
LIFETIME = timedelta(seconds=int(os.environ["JWT_TTL"]))

URL = os.environ["DATABASE_URL"]
ON_SQLITE = URL.startswith("sqlite")
# As many connections as Starlette has threads: beyond the pool's size each would be closed after use and opened anew.
engine = create_engine(URL, connect_args={"check_same_thread": False} if ON_SQLITE else {}, pool_size=40)
password_hash = PasswordHash.recommended()


@event.listens_for(engine, "connect")
def set_pragmas(connection, _record):
    """Put a new SQLite connection in WAL mode with durable commits."""
    if not ON_SQLITE:
        return
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")


class User(SQLModel, table=True):
    """An account."""

    id: int | None = Field(default=None, primary_key=True)
    username: str = Field(max_length=80, unique=True)
    password: str


class CarData(SQLModel):
    """What a car has beside its mark: the body of a creation or update."""

    max_speed: int = Field(ge=0, lt=2**53, sa_type=BigInteger)
    distance: int = Field(ge=0, lt=2**53, sa_type=BigInteger)
    handler: str = Field(min_length=1, max_length=255)
    stock: str = Field(min_length=1, max_length=255)


class CarPublic(CarData):
    """A car as it is shown and imported."""

    mark: str = Field(min_length=1, max_length=255)


class Car(CarData, table=True):
    """A car of the stock."""

    id: int | None = Field(default=None, primary_key=True)
    mark: str = Field(max_length=255, unique=True)


class Account(SQLModel):
    """The body of a registration or login."""

    username: str = Field(min_length=1, max_length=80)
    password: str = Field(min_length=1, max_length=1024)


class Token(SQLModel):
    """The answer to a login."""

    access_token: str
    token_type: str = "bearer"


class Message(SQLModel):
    """The answer to a change."""

    Message: str


@asynccontextmanager
async def lifespan(_app):
    """Create the tables before the first request."""
    SQLModel.metadata.create_all(engine)
    yield


def get_session():
    """Give each request a session of its own."""
    with Session(engine) as session:
        yield session


app = FastAPI(lifespan=lifespan)
SessionDep = Annotated[Session, Depends(get_session)]
TokenDep = Annotated[str, Depends(OAuth2PasswordBearer(tokenUrl="auth"))]


def get_current_user(session: SessionDep, token: TokenDep):
    """Check the token and load the user that it names."""
    refused = HTTPException(401, "Could not validate credentials", headers={"WWW-Authenticate": "Bearer"})
    try:
        username = jwt.decode(token, SECRET_KEY, algorithms=[ALGORITHM]).get("sub")
    except InvalidTokenError as error:
        raise refused from error
    user = session.exec(select(User).where(User.username == username)).first()
    if user is None:
        raise refused
    return user


UserDep = Annotated[User, Depends(get_current_user)]


def find_car(session, mark):
    """Return the car with that mark, or answer 404."""
    car = session.exec(select(Car).where(Car.mark == mark)).first()
    if car is None:
        raise HTTPException(404, "Auto with that mark not found")
    return car


@app.post("/register", status_code=201)
def register(account: Account, session: SessionDep) -> Message:
    """Create an account."""
    session.add(User(username=account.username, password=password_hash.hash(account.password)))
    try:
        session.commit()
    except IntegrityError as error:
        raise HTTPException(400, "User already exists") from error
    return Message(Message="User created. Try to auth")


@app.post("/auth")
def auth(account: Account, session: SessionDep) -> Token:
    """Give a token for a name and its password."""
    user = session.exec(select(User).where(User.username == account.username)).first()
    if user is None or not password_hash.verify(account.password, user.password):
        raise HTTPException(401, "Invalid username or password", headers={"WWW-Authenticate": "Bearer"})
    claims = {"sub": user.username, "exp": datetime.now(UTC) + LIFETIME}
    return Token(access_token=jwt.encode(claims, SECRET_KEY, algorithm=ALGORITHM))


@app.get("/auto/{mark}", response_model=CarPublic)
def read_auto(mark: str, session: SessionDep, _user: UserDep):
    """Show one car."""
    return find_car(session, mark)


@app.post("/auto/{mark}", status_code=201)
def create_auto(mark: str, data: CarData, session: SessionDep, _user: UserDep) -> Message:
    """Create one car."""
    session.add(Car.model_validate(data, update={"mark": mark}))
    try:
        session.commit()
    except IntegrityError as error:
        raise HTTPException(400, "Auto with that mark exists") from error
    return Message(Message="Auto created")


@app.put("/auto/{mark}", status_code=202)
def update_auto(mark: str, data: CarData, session: SessionDep, _user: UserDep) -> Message:
    """Replace the data of one car."""
    car = find_car(session, mark)
    car.sqlmodel_update(data)
    session.add(car)
    session.commit()
    return Message(Message="Auto updated")


@app.get("/stock", response_model=list[CarPublic])
def read_stock(session: SessionDep, _user: UserDep):
    """List the cars, ordered by mark."""
    return session.exec(select(Car).order_by(Car.mark)).all()


@app.post("/stock", status_code=201)
def import_stock(cars: list[CarPublic], session: SessionDep, _user: UserDep) -> Message:
    """Create all cars of an array, or none."""
    try:
        session.execute(insert(Car), [car.model_dump() for car in cars])
        session.commit()
    except IntegrityError as error:
        raise HTTPException(400, "Auto with that mark exists") from error
    return Message(Message=f"{len(cars)} autos created")
