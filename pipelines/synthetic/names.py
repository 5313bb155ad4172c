"""Titles and artist names from small word lists: plausible, pronounceable, and unique by construction."""


def _words(text: str) -> list[str]:
    return text.split()


_FIRST = _words("""
    Amber Quiet Paper Northern Hollow Velvet Slow Golden Broken Silver Distant Winter Electric Crooked Gentle Salt
    Neon Copper Early Wild Last Empty Painted Restless Midnight Cobalt Dusty Second Open Faded Crimson Tidal Wooden
    Little Borrowed Secret Lucky Foreign Burning Sleeping Hidden Sunday Marble Young Glass Lonely Bright Spare Ivory
    Drifting
""")
_SECOND = _words("""
    Lanterns Harbour Summer Letters Motorway Orchard Signals Rivers Telephone Mountains Kitchen Satellite Garden
    Engine Postcards Window Weather Balcony Horses Avenue Machine Feathers Stations Holiday Shadow Carnival Elevator
    Meadow Compass Radio Bridges Thunder Photograph Island Ferry Candle Mirror Cinema Parade Gravity Winter Tigers
    Ladder Sparrow Harvest Boulevard Honey Lighthouse Atlas Umbrella Ocean Comet Piano Heartbeat Stranger Morning
    Blossom Kingdom Passenger Arcade
""")
_SHAPES = ("{a} {b}", "The {a} {b}", "{b} of {c}", "{a} {b} in {c}", "No More {a} {b}", "{c}, {a} {b}")
_PLACES = _words("""
    June Lisbon November Oslo Porto April Tangier Vienna Autumn Havana Trieste March Naples Bergen Galway Odessa
    Cadiz Riga
""")
_SYLLABLES = _words("""
    ka lo mi ra ven tor sa bel na dri mo lin ja cor el va shi ro ber ti an du fi gra hal is ke lu mar ne o pe qui ri
    sol ta u vi wen xa ya zo
""")
_GROUPS = ("{n}", "{n} & the {b}", "The {n}", "{n} {m}", "DJ {n}", "{n} Trio", "{m} {n}", "{n} Collective")


def title(number: int) -> str:
    """The title of song `number`: words are the digits of the number within its shape, so no two are the same.

    >>> title(0), title(6)
    ('Amber Lanterns', 'Neon Sparrow')
    """
    index, which = divmod(number, len(_SHAPES))
    shape = _SHAPES[which]
    first, place = "{a}" in shape, "{c}" in shape
    size = len(_SECOND) * (len(_FIRST) if first else 1) * (len(_PLACES) if place else 1)
    part, index = divmod(index, size)
    index = (index + 331 * which) * 100_003 % size  # a bijection: neighbours in the catalogue share no words
    index, b = divmod(index, len(_SECOND))
    c, a = divmod(index, len(_FIRST)) if first else (index, 0)
    text = shape.format(a=_FIRST[a], b=_SECOND[b], c=_PLACES[c] if place else "")
    return text + (f" (Part {part + 1})" if part else "")


def artist(number: int) -> str:
    """The name of artist `number`, unique."""
    base = len(_SYLLABLES)
    place = number * 7_919 % base**3
    place, x = divmod(place, base)
    z, y = divmod(place, base)
    name = (_SYLLABLES[x] + _SYLLABLES[y] + _SYLLABLES[z]).capitalize()
    other = (_SYLLABLES[z] + _SYLLABLES[(x + y) % base]).capitalize()
    text = _GROUPS[(x + y + z) % len(_GROUPS)].format(n=name, m=other, b=_SECOND[number % len(_SECOND)])
    return text + (f" {number // base**3 + 1}" if number >= base**3 else "")
