"""Templates that no training problem comes from: the same kinds of steps in other stories and orders."""

from mla_jax.tasks.problem import Draw
from mla_jax.tasks.templates import Drawn, Template


def hiking_water(d: Draw) -> Drawn:
    who, people, bottles, spilled, half_liters = (
        d.name(),
        d.number(2, 9),
        d.number(2, 12),
        d.number(1, 8),
        d.number(2, 5),
    )
    packed = people * bottles
    left = packed - spilled
    if left < 1:
        return None
    return (
        f"{people} hikers go with {who}'s club. Each of them packs {bottles} bottles of water of {half_liters} cups "
        f"each. {spilled} bottles are spilled. How many cups of water remain?",
        [
            f"They pack {people} * {bottles} = {packed} bottles.",
            f"There are {packed} - {spilled} = {left} bottles left.",
            f"That is {left} * {half_liters} = {left * half_liters} cups.",
        ],
        left * half_liters,
    )


def theater_seats(d: Draw) -> Drawn:
    rows, seats, sold, price = d.number(5, 9), d.number(11, 40), d.number(10, 200), d.number(2, 6)
    total = rows * seats
    free = total - sold
    if not 1 <= free * price <= 999 or free < 1:
        return None
    return (
        f"A theater has {rows} rows with {seats} seats in each row. {sold} seats are sold already. What do the other "
        f"seats bring at {price} dollars each?",
        [
            f"The theater has {rows} * {seats} = {total} seats.",
            f"There are {total} - {sold} = {free} seats to sell.",
            f"They bring {free} * {price} = {free * price} dollars.",
        ],
        free * price,
    )


def post_office(d: Draw) -> Drawn:
    who, letters, stamp, parcels, parcel = (
        d.name(),
        d.number(2, 30),
        d.number(2, 5),
        d.number(2, 8),
        d.number(6, 20),
    )
    a, b = letters * stamp, parcels * parcel
    return (
        f"{who} sends {letters} letters and {parcels} parcels. A letter needs a stamp of {stamp} dollars and a parcel "
        f"one of {parcel} dollars. How many dollars more do the dearer of the two kinds of mail cost in all?",
        [
            f"The letters cost {letters} * {stamp} = {a} dollars.",
            f"The parcels cost {parcels} * {parcel} = {b} dollars.",
            f"The difference is {max(a, b)} - {min(a, b)} = {max(a, b) - min(a, b)} dollars.",
        ],
        max(a, b) - min(a, b),
    )


def aquarium(d: Draw) -> Drawn:
    who, fish, k, sold = d.name(), d.number(4, 40), d.number(2, 4), d.number(2, 30)
    snails = fish * k
    total = fish + snails
    if sold >= total:
        return None
    times = {2: "twice", 3: "three times", 4: "four times"}[k]
    return (
        f"An aquarium has {fish} fish and {times} as many snails. {who} takes {sold} animals out. How many animals "
        f"stay in the aquarium?",
        [
            f"There are {fish} * {k} = {snails} snails.",
            f"Together there are {fish} + {snails} = {total} animals.",
            f"There stay {total} - {sold} = {total - sold} animals.",
        ],
        total - sold,
    )


def painting(d: Draw) -> Drawn:
    who, walls, meters, per_can, cans = (
        d.name(),
        d.number(2, 8),
        d.number(4, 30),
        d.number(3, 9),
        d.number(3, 40),
    )
    area = walls * meters
    if area != per_can * cans:
        return None
    return (
        f"{who} paints {walls} walls of {meters} square meters each. One can of paint is enough for {per_can} square "
        f"meters. How many cans does {who} need?",
        [
            f"The walls have {walls} * {meters} = {area} square meters.",
            f"{who} needs {area} / {per_can} = {cans} cans.",
        ],
        cans,
    )


def bees(d: Draw) -> Drawn:
    who, hives, jars, kept, price = d.name(), d.number(3, 9), d.number(4, 15), d.number(2, 20), d.number(3, 8)
    total = hives * jars
    sold = total - kept
    if sold < 1 or sold * price > 999:
        return None
    return (
        f"{who} keeps bees. Each of the {hives} hives gives {jars} jars of honey. {who} keeps {kept} jars and sells "
        f"the rest for {price} dollars a jar. How much money does {who} get?",
        [
            f"The hives give {hives} * {jars} = {total} jars.",
            f"{who} sells {total} - {kept} = {sold} jars.",
            f"That brings {sold} * {price} = {sold * price} dollars.",
        ],
        sold * price,
    )


def charity(d: Draw) -> Drawn:
    a, b, n, more, k = d.name(), d.name(), d.number(10, 90), d.number(5, 60), d.number(2, 9)
    second = n + more
    both = n + second
    if both % k:
        return None
    return (
        f"For a charity {a} collects {n} dollars and {b} collects {more} dollars more than {a}. The money is divided "
        f"equally among {k} families. How many dollars does one family get?",
        [
            f"{b} collects {n} + {more} = {second} dollars.",
            f"Together they collect {n} + {second} = {both} dollars.",
            f"One family gets {both} / {k} = {both // k} dollars.",
        ],
        both // k,
    )


def elevator(d: Draw) -> Drawn:
    floors, per_floor, empty, people = d.number(4, 30), d.number(2, 9), d.number(1, 20), d.number(2, 5)
    flats = floors * per_floor
    used = flats - empty
    if used < 1 or used * people > 999:
        return None
    return (
        f"A tower has {floors} floors with {per_floor} flats on each floor. {empty} flats are empty, and {people} "
        f"people live in each of the others. How many people live in the tower?",
        [
            f"The tower has {floors} * {per_floor} = {flats} flats.",
            f"People live in {flats} - {empty} = {used} of them.",
            f"That makes {used} * {people} = {used * people} people.",
        ],
        used * people,
    )


UNSEEN_TEMPLATES: tuple[Template, ...] = (
    hiking_water,
    theater_seats,
    post_office,
    aquarium,
    painting,
    bees,
    charity,
    elevator,
)
