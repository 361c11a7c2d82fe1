"""The templates that training and the test split share: two to five steps each, every step an equation.

A template takes a `Draw` and returns (question, steps, answer), or None where the numbers do not fit; the
caller draws again. Results stay in [0, 999].
"""

from collections.abc import Callable

from mla_jax.tasks.problem import Draw, product

Drawn = tuple[str, list[str], int] | None
Template = Callable[[Draw], Drawn]

THINGS = "pens notebooks stickers apples candles mugs ribbons balloons plums badges".split()
SWEETS = "candies cookies marbles stickers nuts grapes beads shells".split()
PLACES = "the market,the bakery,the school shop,the fair,the corner store".split(",")


def shopping(d: Draw) -> Drawn:
    who, first, second = d.name(), d.pick(THINGS), d.pick(THINGS)
    n, p, m, q, left = d.number(2, 9), d.number(2, 19), d.number(2, 9), d.number(2, 19), d.number(1, 60)
    if first == second:
        return None
    a, b = n * p, m * q
    paid = a + b + left
    return (
        f"{who} goes to {d.pick(PLACES)} with {paid} dollars and buys {n} {first} for {p} dollars each and {m} "
        f"{second} for {q} dollars each. How many dollars does {who} have left?",
        [
            f"The {first} cost {n} * {p} = {a} dollars.",
            f"The {second} cost {m} * {q} = {b} dollars.",
            f"Together that is {a} + {b} = {a + b} dollars.",
            f"{who} has {paid} - {a + b} = {left} dollars left.",
        ],
        left,
    )


def total_price(d: Draw) -> Drawn:
    who, thing, fee = d.name(), d.pick(THINGS), d.number(3, 40)
    n, p = d.number(2, 9), d.number(3, 60)
    cost = n * p
    return (
        d.pick(
            (
                f"{who} orders {n} {thing} at {p} dollars each. Delivery costs {fee} dollars. How many dollars does "
                f"{who} pay in all?",
                f"One box of {thing} costs {p} dollars and delivery costs {fee} dollars. What does {who} pay for {n} "
                f"boxes with delivery?",
            )
        ),
        [
            f"The {thing} cost {n} * {p} = {cost} dollars.",
            f"With delivery {who} pays {cost} + {fee} = {cost + fee} dollars.",
        ],
        cost + fee,
    )


def travel(d: Draw) -> Drawn:
    who, vehicle = d.name(), d.pick(("car", "bus", "train", "truck"))
    h, v, g, w = d.number(2, 6), d.number(20, 90), d.number(2, 6), d.number(20, 90)
    a, b = h * v, g * w
    if a + b > 999:
        return None
    return (
        f"{who} travels by {vehicle} for {h} hours at {v} miles per hour and then for {g} hours at {w} miles per "
        f"hour. How many miles does {who} travel?",
        [
            f"The first part is {h} * {v} = {a} miles.",
            f"The second part is {g} * {w} = {b} miles.",
            f"The whole trip is {a} + {b} = {a + b} miles.",
        ],
        a + b,
    )


def remaining_trip(d: Draw) -> Drawn:
    who = d.name()
    h, v, g, w = d.number(2, 5), d.number(12, 80), d.number(2, 6), d.number(11, 60)
    done, rest = h * v, g * w
    if done + rest > 999:
        return None
    return (
        f"A trip is {done + rest} miles long. {who} drives {h} hours at {v} miles per hour and wants to drive the "
        f"rest in {g} hours. How many miles per hour does {who} have to drive?",
        [
            f"{who} has driven {h} * {v} = {done} miles.",
            f"There are {done + rest} - {done} = {rest} miles left.",
            f"The speed has to be {rest} / {g} = {w} miles per hour.",
        ],
        w,
    )


def ages_sum(d: Draw) -> Drawn:
    a, b, c = d.name(), d.name(), d.name()
    age, older, k = d.number(4, 30), d.number(2, 12), d.number(2, 3)
    second = age + older
    third = second * k
    times = "twice" if k == 2 else "three times"
    both = age + second
    return (
        f"{a} is {age} years old. {b} is {older} years older than {a}. {c} is {times} as old as {b}. How old are the "
        f"three of them together?",
        [
            f"{b} is {age} + {older} = {second} years old.",
            f"{c} is {second} * {k} = {third} years old.",
            f"{a} and {b} are {age} + {second} = {both}.",
            f"All three are {both} + {third} = {both + third}.",
        ],
        both + third,
    )


def ages_future(d: Draw) -> Drawn:
    a, b = d.name(), d.name()
    age, k, years = d.number(3, 19), d.number(2, 5), d.number(2, 20)
    older = age * k
    if older > 80:
        return None
    return (
        f"{a} is {age} years old and {b} is {k} times as old. How old will {b} be in {years} years?",
        [
            f"{b} is {age} * {k} = {older} years old now.",
            f"In {years} years {b} will be {older} + {years} = {older + years}.",
        ],
        older + years,
    )


def equal_shares(d: Draw) -> Drawn:
    who, sweet = d.name(), d.pick(SWEETS)
    friends, each, eaten = d.number(3, 9), d.number(4, 40), d.number(2, 30)
    shared = friends * each
    return (
        d.pick(
            (
                f"{who} has {shared + eaten} {sweet}, keeps {eaten} of them and shares the rest equally among "
                f"{friends} friends. How many {sweet} does each friend get?",
                f"A bag holds {shared + eaten} {sweet}. After {who} takes {eaten} of them, {friends} children share "
                f"the others equally. How many {sweet} does each child get?",
            )
        ),
        [
            f"There are {shared + eaten} - {eaten} = {shared} {sweet} to share.",
            f"Each gets {shared} / {friends} = {each} {sweet}.",
        ],
        each,
    )


def pooled_shares(d: Draw) -> Drawn:
    a, b, sweet = d.name(), d.name(), d.pick(SWEETS)
    n, k, each = d.number(11, 90), d.number(2, 8), d.number(6, 40)
    total = k * each
    other = total - n
    if not 2 <= other <= 200 or other == n:
        return None
    return (
        f"{a} has {n} {sweet} and {b} has {other} {sweet}. They put them together and fill {k} bags with the same "
        f"number in each. How many {sweet} are in one bag?",
        [
            f"Together they have {n} + {other} = {total} {sweet}.",
            f"One bag holds {total} / {k} = {each} {sweet}.",
        ],
        each,
    )


def machine_rate(d: Draw) -> Drawn:
    per_hour, hours, days, broken = d.number(3, 20), d.number(3, 9), d.number(2, 6), d.number(2, 40)
    daily = per_hour * hours
    made = daily * days
    if made > 900 or broken >= made:
        return None
    product_name = d.pick(("toys", "chairs", "lamps", "clocks", "bikes"))
    return (
        f"A machine makes {per_hour} {product_name} per hour and runs {hours} hours a day. In {days} days {broken} of "
        f"the {product_name} turn out to be broken. How many good {product_name} are there?",
        [
            f"In one day it makes {per_hour} * {hours} = {daily} {product_name}.",
            f"In {days} days it makes {daily} * {days} = {made} {product_name}.",
            f"There are {made} - {broken} = {made - broken} good {product_name}.",
        ],
        made - broken,
    )


def boxes_sold(d: Draw) -> Drawn:
    who, size, boxes, rest, price = d.name(), d.number(4, 9), d.number(4, 60), d.number(1, 8), d.number(2, 9)
    if rest >= size:
        return None
    full = size * boxes
    thing = d.pick(("eggs", "bottles", "oranges", "rolls", "bulbs"))
    return (
        f"{who} has {full + rest} {thing}, gives {rest} of them away and packs the others into boxes of {size}. A box "
        f"sells for {price} dollars. How many dollars does {who} earn?",
        [
            f"There are {full + rest} - {rest} = {full} {thing} to pack.",
            f"They fill {full} / {size} = {boxes} boxes.",
            f"The boxes sell for {boxes} * {price} = {boxes * price} dollars.",
        ],
        boxes * price,
    )


def leftover(d: Draw) -> Drawn:
    who, thing = d.name(), d.pick(("eggs", "bottles", "oranges", "rolls", "bulbs"))
    a, b, size = d.number(12, 70), d.number(12, 70), d.number(4, 9)
    total = a + b
    boxes = total // size
    rest = total - boxes * size
    return (
        f"{who} has {a} {thing} in the kitchen and {b} {thing} in the cellar and packs them into boxes of {size}. How "
        f"many {thing} are left over when as many boxes as possible are full?",
        [
            f"There are {a} + {b} = {total} {thing}.",
            f"{boxes} boxes hold {boxes} * {size} = {boxes * size} {thing}.",
            f"So {total} - {boxes * size} = {rest} {thing} are left over.",
        ],
        rest,
    )


def percent_step(whole: int, percent: int) -> tuple[str, int]:
    """The sentence that works out a multiple of ten per cent of a multiple of ten."""
    tenth = whole // 10
    part = tenth * (percent // 10)
    if percent == 10:
        return f"10% of {whole} is {whole} / 10 = {tenth}.", part
    return (
        f"10% of {whole} is {whole} / 10 = {tenth}, so {percent}% is {tenth} * {percent // 10} = {part}.",
        part,
    )


def discount(d: Draw) -> Drawn:
    who, price, percent = d.name(), d.tens(20, 600), d.tens(10, 70)
    coupon = d.number(1, 30)
    thing = d.pick(("jacket", "bike", "phone", "desk", "tent", "camera"))
    step, off = percent_step(price, percent)
    if price - off <= coupon:
        return None
    return (
        f"A {thing} costs {price} dollars. It is sold with a discount of {percent}%, and {who} also has a coupon for "
        f"{coupon} dollars. How many dollars does {who} pay?",
        [
            step,
            f"The price becomes {price} - {off} = {price - off} dollars.",
            f"With the coupon it is {price - off} - {coupon} = {price - off - coupon} dollars.",
        ],
        price - off - coupon,
    )


def raise_percent(d: Draw) -> Drawn:
    who, rent, percent, months = d.name(), d.tens(30, 140), d.tens(10, 50), d.number(2, 5)
    step, more = percent_step(rent, percent)
    new = rent + more
    if new * months > 999:
        return None
    thing = d.pick(("rent of a garage", "price of a course", "fee of a club"))
    return (
        f"The {thing} is {rent} dollars a month and rises by {percent}%. How many dollars does {who} pay for {months} "
        f"months after the rise?",
        [
            step,
            f"The new price is {rent} + {more} = {new} dollars.",
            f"{months} months cost {new} * {months} = {new * months} dollars.",
        ],
        new * months,
    )


def survey_percent(d: Draw) -> Drawn:
    total, percent, cars = d.tens(50, 600), d.tens(10, 60), d.number(5, 90)
    step, walking = percent_step(total, percent)
    rest = total - walking - cars
    if rest < 1:
        return None
    return (
        f"A school has {total} students. {percent}% of them walk to school, {cars} come by car and the others take "
        f"the bus. How many students take the bus?",
        [
            step,
            f"Without them there are {total} - {walking} = {total - walking} students.",
            f"The bus takes {total - walking} - {cars} = {rest} students.",
        ],
        rest,
    )


def savings_weeks(d: Draw) -> Drawn:
    who, weekly, weeks, have = d.name(), d.number(3, 30), d.number(3, 9), d.number(10, 200)
    missing = weekly * weeks
    thing = d.pick(("bike", "guitar", "watch", "skateboard", "telescope"))
    return (
        f"{who} wants a {thing} that costs {have + missing} dollars, has {have} dollars and saves {weekly} dollars a "
        f"week. After how many weeks can {who} buy it?",
        [
            f"{who} needs {have + missing} - {have} = {missing} dollars more.",
            f"That takes {missing} / {weekly} = {weeks} weeks.",
        ],
        weeks,
    )


def savings_spent(d: Draw) -> Drawn:
    who, weekly, weeks, gift, spent = (
        d.name(),
        d.number(4, 60),
        d.number(3, 9),
        d.number(5, 90),
        d.number(5, 90),
    )
    saved = weekly * weeks
    have = saved + gift
    if spent >= have:
        return None
    return (
        f"{who} saves {weekly} dollars a week for {weeks} weeks and gets {gift} dollars as a gift. Then {who} spends "
        f"{spent} dollars. How many dollars are left?",
        [
            f"{who} saves {weekly} * {weeks} = {saved} dollars.",
            f"With the gift that is {saved} + {gift} = {have} dollars.",
            f"There are {have} - {spent} = {have - spent} dollars left.",
        ],
        have - spent,
    )


def garden(d: Draw) -> Drawn:
    who, plant = d.name(), d.pick(("tomato", "pepper", "rose", "bean", "tulip"))
    rows, per_row, dead, fruit = d.number(3, 9), d.number(3, 16), d.number(1, 12), d.number(2, 6)
    planted = rows * per_row
    alive = planted - dead
    if alive < 2 or alive * fruit > 900:
        return None
    return (
        f"{who} plants {rows} rows of {per_row} {plant} plants. {dead} plants die and each of the others bears "
        f"{fruit} flowers. How many flowers are there?",
        [
            f"There are {rows} * {per_row} = {planted} plants.",
            f"After that {planted} - {dead} = {alive} plants are alive.",
            f"They bear {alive} * {fruit} = {alive * fruit} flowers.",
        ],
        alive * fruit,
    )


def library(d: Draw) -> Drawn:
    start, out, back, new = d.number(100, 700), d.number(10, 99), d.number(5, 80), d.number(10, 120)
    day = d.pick(("Monday", "Tuesday", "Friday"))
    a = start - out
    b = a + back
    return (
        f"A library has {start} books. On {day} {out} books are borrowed and {back} are returned, and the next day "
        f"{new} new books arrive. How many books are in the library then?",
        [
            f"After borrowing there are {start} - {out} = {a} books.",
            f"After the returns there are {a} + {back} = {b} books.",
            f"With the new ones there are {b} + {new} = {b + new} books.",
        ],
        b + new,
    )


def bakery(d: Draw) -> Drawn:
    trays, per_tray, left, price = d.number(3, 9), d.number(6, 24), d.number(2, 30), d.number(2, 5)
    baked = trays * per_tray
    sold = baked - left
    if sold < 2 or sold * price > 900:
        return None
    cake = d.pick(("muffins", "buns", "tarts", "bagels", "scones"))
    return (
        f"A bakery bakes {trays} trays of {per_tray} {cake}. In the evening {left} {cake} are left, the others were "
        f"sold for {price} dollars each. How many dollars did the bakery earn?",
        [
            f"It baked {trays} * {per_tray} = {baked} {cake}.",
            f"It sold {baked} - {left} = {sold} {cake}.",
            f"It earned {sold} * {price} = {sold * price} dollars.",
        ],
        sold * price,
    )


def reading(d: Draw) -> Drawn:
    who, daily, days, rest_days, rest_daily = (
        d.name(),
        d.number(5, 40),
        d.number(2, 9),
        d.number(2, 9),
        d.number(5, 40),
    )
    read, rest = daily * days, rest_days * rest_daily
    return (
        f"A book has {read + rest} pages. {who} reads {daily} pages a day for {days} days and then finishes the book "
        f"in {rest_days} days with the same number of pages each day. How many pages a day is that?",
        [
            f"{who} first reads {daily} * {days} = {read} pages.",
            f"Then {read + rest} - {read} = {rest} pages are left.",
            f"That is {rest} / {rest_days} = {rest_daily} pages a day.",
        ],
        rest_daily,
    )


def farm_legs(d: Draw) -> Drawn:
    who, birds, cows, sold = d.name(), d.number(3, 60), d.number(3, 60), d.number(1, 20)
    if sold >= cows:
        return None
    bird = d.pick(("hens", "ducks", "geese"))
    left = cows - sold
    a, b = birds * 2, left * 4
    return (
        f"{who} has {birds} {bird} and {cows} cows and sells {sold} of the cows. How many legs do the remaining "
        f"animals have?",
        [
            f"There are {cows} - {sold} = {left} cows left.",
            f"The {bird} have {birds} * 2 = {a} legs.",
            f"The cows have {left} * 4 = {b} legs.",
            f"Together they have {a} + {b} = {a + b} legs.",
        ],
        a + b,
    )


def bus_stops(d: Draw) -> Drawn:
    on, off1, on1, off2 = d.number(15, 60), d.number(2, 20), d.number(2, 30), d.number(2, 30)
    a = on - off1
    b = a + on1
    if a < 0 or b <= off2:
        return None
    who = d.pick(("bus", "tram", "ferry"))
    return (
        f"A {who} starts with {on} passengers. At the first stop {off1} get off and {on1} get on. At the second stop "
        f"{off2} get off. How many passengers are on the {who} now?",
        [
            f"After {off1} get off there are {on} - {off1} = {a}.",
            f"After {on1} get on there are {a} + {on1} = {b}.",
            f"After the second stop there are {b} - {off2} = {b - off2}.",
        ],
        b - off2,
    )


def tank(d: Draw) -> Drawn:
    rate, minutes, used, start = d.number(3, 25), d.number(3, 30), d.number(5, 90), d.number(10, 200)
    flow = rate * minutes
    full = start + flow
    if used >= full or full > 999:
        return None
    what = d.pick(("tank", "pool", "barrel"))
    return (
        f"A {what} holds {start} liters of water. A pump adds {rate} liters a minute for {minutes} minutes, and then "
        f"{used} liters are used. How many liters are in the {what}?",
        [
            f"The pump adds {product(rate, minutes)} liters.",
            f"Then there are {start} + {flow} = {full} liters.",
            f"After that {full} - {used} = {full - used} liters are left.",
        ],
        full - used,
    )


def fence(d: Draw) -> Drawn:
    who, a, b, price = d.name(), d.number(3, 40), d.number(3, 40), d.number(2, 9)
    if a == b:
        return None
    half = a + b
    around = half * 2
    if around * price > 999:
        return None
    return (
        f"{who} builds a fence around a field that is {a} meters long and {b} meters wide. One meter of fence costs "
        f"{price} dollars. How many dollars does the fence cost?",
        [
            f"Length and width are {a} + {b} = {half} meters.",
            f"Around the field it is {half} * 2 = {around} meters.",
            f"The fence costs {around} * {price} = {around * price} dollars.",
        ],
        around * price,
    )


def tiles(d: Draw) -> Drawn:
    who, a, b, have = d.name(), d.number(4, 30), d.number(11, 30), d.number(5, 90)
    area = a * b
    if area <= have or area > 900:
        return None
    room = d.pick(("kitchen", "bathroom", "hall", "terrace"))
    return (
        f"{who} tiles a {room} with {a} rows of {b} tiles and already has {have} tiles. How many more tiles does "
        f"{who} need?",
        [
            f"The {room} takes {product(a, b)} tiles.",
            f"{who} needs {area} - {have} = {area - have} more.",
        ],
        area - have,
    )


def twice_and_half(d: Draw) -> Drawn:
    a, b, c, sweet = d.name(), d.name(), d.name(), d.pick(SWEETS)
    half, more = d.number(3, 60), d.number(2, 30)
    n = half * 2
    third = half + more
    both = n + half
    return (
        f"{a} has {n} {sweet}. {b} has half as many as {a}, and {c} has {more} more than {b}. How many {sweet} do "
        f"they have together?",
        [
            f"{b} has {n} / 2 = {half} {sweet}.",
            f"{c} has {half} + {more} = {third} {sweet}.",
            f"{a} and {b} have {n} + {half} = {both} {sweet}.",
            f"All three have {both} + {third} = {both + third} {sweet}.",
        ],
        both + third,
    )


def tickets(d: Draw) -> Drawn:
    adults, children, p, q, cost = (
        d.number(2, 40),
        d.number(2, 40),
        d.number(5, 9),
        d.number(2, 8),
        d.number(5, 90),
    )
    a, b = adults * p, children * q
    if q >= p or a + b <= cost:
        return None
    show = d.pick(("concert", "film", "play", "circus"))
    return (
        f"{adults} adults and {children} children see a {show}. A ticket costs {p} dollars for an adult and {q} "
        f"dollars for a child. The hall costs {cost} dollars. How many dollars remain?",
        [
            f"The adults pay {adults} * {p} = {a} dollars.",
            f"The children pay {children} * {q} = {b} dollars.",
            f"Together they pay {a} + {b} = {a + b} dollars.",
            f"There remain {a + b} - {cost} = {a + b - cost} dollars.",
        ],
        a + b - cost,
    )


def wages(d: Draw) -> Drawn:
    who, hourly, hours, days, bonus = (
        d.name(),
        d.number(8, 25),
        d.number(3, 8),
        d.number(2, 5),
        d.number(10, 90),
    )
    daily = hourly * hours
    pay = daily * days
    if pay + bonus > 999:
        return None
    return (
        f"{who} earns {hourly} dollars an hour and works {hours} hours a day for {days} days. There is a bonus of "
        f"{bonus} dollars. How many dollars does {who} earn?",
        [
            f"One day brings {hourly} * {hours} = {daily} dollars.",
            f"{days} days bring {daily} * {days} = {pay} dollars.",
            f"With the bonus it is {pay} + {bonus} = {pay + bonus} dollars.",
        ],
        pay + bonus,
    )


def give_fraction(d: Draw) -> Drawn:
    a, b, sweet = d.name(), d.name(), d.pick(SWEETS)
    k, part, lost = d.number(2, 5), d.number(4, 60), d.number(1, 30)
    n = k * part
    rest = n - part
    if lost >= rest:
        return None
    fraction = {2: "half", 3: "a third", 4: "a quarter", 5: "a fifth"}[k]
    return (
        f"{a} has {n} {sweet}, gives {fraction} of them to {b} and loses {lost}. How many {sweet} does {a} have now?",
        [
            f"{b} gets {n} / {k} = {part} {sweet}.",
            f"{a} keeps {n} - {part} = {rest} {sweet}.",
            f"After the loss there are {rest} - {lost} = {rest - lost} {sweet}.",
        ],
        rest - lost,
    )


def recipe(d: Draw) -> Drawn:
    who, each, k, people = d.name(), d.number(3, 60), d.number(2, 9), d.number(2, 9)
    have = d.number(2, 40)
    need = each * k
    if need <= have or people == people * k:
        return None
    what = d.pick(("grams of sugar", "grams of butter", "grams of flour", "spoons of oil"))
    guests = people * k
    return (
        f"A recipe for {people} people takes {each} {what}. {who} cooks for {guests} people and has {have} {what}. "
        f"How many more are needed?",
        [
            f"That is {guests} / {people} = {k} times the recipe.",
            f"It takes {each} * {k} = {need} {what}.",
            f"{who} needs {need} - {have} = {need - have} more.",
        ],
        need - have,
    )


def running(d: Draw) -> Drawn:
    a, b = d.name(), d.name()
    laps, length, days, other = d.number(2, 9), d.number(3, 15), d.number(2, 7), d.number(5, 90)
    daily = laps * length
    total = daily * days
    if total > 900 or total == other:
        return None
    more, less = max(total, other), min(total, other)
    return (
        f"{a} runs {laps} laps of {length} minutes a day for {days} days. {b} runs {other} minutes in all. What is "
        f"the difference between their times in minutes?",
        [
            f"{a} runs {laps} * {length} = {daily} minutes a day.",
            f"In {days} days it is {daily} * {days} = {total} minutes.",
            f"The difference is {more} - {less} = {more - less} minutes.",
        ],
        more - less,
    )


def game_score(d: Draw) -> Drawn:
    who, hits, points, misses, penalty = (
        d.name(),
        d.number(4, 60),
        d.number(3, 9),
        d.number(2, 9),
        d.number(2, 6),
    )
    won, lost = hits * points, misses * penalty
    if lost >= won:
        return None
    return (
        f"In a game {who} gets {points} points for a hit and loses {penalty} points for a miss. {who} has {hits} hits "
        f"and {misses} misses. What is the score?",
        [
            f"The hits bring {hits} * {points} = {won} points.",
            f"The misses cost {misses} * {penalty} = {lost} points.",
            f"The score is {won} - {lost} = {won - lost}.",
        ],
        won - lost,
    )


def average(d: Draw) -> Drawn:
    who, a, b, mean = d.name(), d.number(10, 99), d.number(10, 99), d.number(10, 99)
    total = mean * 3
    c = total - a - b
    if not 5 <= c <= 120:
        return None
    what = d.pick(("points", "miles", "pages", "pictures"))
    return (
        f"{who} counts {a} {what} on the first day, {b} on the second and {c} on the third. What is the average a "
        f"day?",
        [
            f"The first two days give {a} + {b} = {a + b} {what}.",
            f"All three give {a + b} + {c} = {total} {what}.",
            f"The average is {total} / 3 = {mean} {what}.",
        ],
        mean,
    )


def album(d: Draw) -> Drawn:
    who, pages, per_page, more, per_new = (
        d.name(),
        d.number(5, 40),
        d.number(2, 9),
        d.number(2, 20),
        d.number(2, 9),
    )
    a, b = pages * per_page, more * per_new
    what = d.pick(("stamps", "photos", "coins", "cards"))
    return (
        f"{who} has an album with {pages} pages of {per_page} {what} and buys {more} packs of {per_new} {what}. How "
        f"many {what} does {who} have?",
        [
            f"The album holds {pages} * {per_page} = {a} {what}.",
            f"The packs hold {more} * {per_new} = {b} {what}.",
            f"Together there are {a} + {b} = {a + b} {what}.",
        ],
        a + b,
    )


def minutes_spent(d: Draw) -> Drawn:
    who, hours, task, count, rest = d.name(), d.number(2, 9), d.number(4, 40), d.number(2, 9), d.number(5, 50)
    total, used = hours * 60, task * count
    if used + rest >= total:
        return None
    left = total - used
    return (
        f"{who} has {hours} hours. {count} tasks take {task} minutes each, and a break takes {rest} minutes. How many "
        f"minutes remain?",
        [
            f"{hours} hours are {hours} * 60 = {total} minutes.",
            f"The tasks take {count} * {task} = {used} minutes.",
            f"Then {total} - {used} = {left} minutes remain.",
            f"After the break there are {left} - {rest} = {left - rest} minutes.",
        ],
        left - rest,
    )


def teams(d: Draw) -> Drawn:
    size, groups, girls, absent = d.number(3, 9), d.number(4, 30), d.number(8, 90), d.number(1, 9)
    present = size * groups
    total = present + absent
    boys = total - girls
    if not 5 <= boys <= 200:
        return None
    return (
        f"{girls} girls and {boys} boys sign up for a tournament, but {absent} of them stay at home. The others form "
        f"teams of {size}. How many teams are there?",
        [
            f"{girls} + {boys} = {total} children sign up.",
            f"{total} - {absent} = {present} children come.",
            f"They form {present} / {size} = {groups} teams.",
        ],
        groups,
    )


def profit(d: Draw) -> Drawn:
    who, n, cost, gain = d.name(), d.number(3, 30), d.number(2, 9), d.number(1, 9)
    price = cost + gain
    if price > 9:
        return None
    spent, earned = n * cost, n * price
    thing = d.pick(THINGS)
    return (
        f"{who} buys {n} {thing} for {cost} dollars each and sells all of them for {price} dollars each. How many "
        f"dollars of profit does {who} make?",
        [
            f"{who} pays {n} * {cost} = {spent} dollars.",
            f"{who} receives {n} * {price} = {earned} dollars.",
            f"The profit is {earned} - {spent} = {earned - spent} dollars.",
        ],
        earned - spent,
    )


def collection(d: Draw) -> Drawn:
    who, n, p, m, q = d.name(), d.number(2, 9), d.number(3, 20), d.number(2, 9), d.number(3, 20)
    k, each = d.number(2, 6), d.number(3, 60)
    first, second = d.pick(THINGS), d.pick(SWEETS)
    a, b = n * p, m * q
    total, shared = a + b, k * each
    if total <= shared or first == second:
        return None
    return (
        f"{who} collects {n} boxes of {p} {first} and {m} boxes of {q} {second} and then gives {k} children {each} "
        f"things each. How many things does {who} have left?",
        [
            f"There are {n} * {p} = {a} {first}.",
            f"There are {m} * {q} = {b} {second}.",
            f"Together there are {a} + {b} = {total} things.",
            f"The children get {k} * {each} = {shared} things.",
            f"There are {total} - {shared} = {total - shared} things left.",
        ],
        total - shared,
    )


SHARED_TEMPLATES: tuple[Template, ...] = (
    shopping,
    total_price,
    travel,
    remaining_trip,
    ages_sum,
    ages_future,
    equal_shares,
    pooled_shares,
    machine_rate,
    boxes_sold,
    leftover,
    discount,
    raise_percent,
    survey_percent,
    savings_weeks,
    savings_spent,
    garden,
    library,
    bakery,
    reading,
    farm_legs,
    bus_stops,
    tank,
    fence,
    tiles,
    twice_and_half,
    tickets,
    wages,
    give_fraction,
    recipe,
    running,
    game_score,
    average,
    album,
    minutes_spent,
    teams,
    profit,
    collection,
)
