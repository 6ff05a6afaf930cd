"""The words for how much of something there is.

Each list goes from little to much; each entry holds phrases that mean the same. A level has words of
its own ("a pond", "open water"), so that a caption says how much even to a reader who only counts
words.
"""

from __future__ import annotations

Phrases = tuple[tuple[str, ...], ...]

COVER_LEVELS = (0.006, 0.035, 0.12, 0.32, 0.60)
"""Least share of area for each entry of :data:`COVER_PHRASES`."""

COVER_PHRASES: dict[str, Phrases] = {
    "water": (
        ("a pond", "a small pond"),
        ("a lake", "a little lake"),
        ("a bay", "a calm bay"),
        ("a wide stretch of water", "broad water"),
        ("open sea", "the open sea"),
    ),
    "beach": (
        ("a sliver of beach", "a sliver of shore"),
        ("a strip of beach", "a strip of pale shore"),
        ("a sandy beach", "a sandy shore"),
        ("a broad beach", "a broad sandy shore"),
        ("endless beach", "an endless sandy shore"),
    ),
    "desert": (
        ("a dry patch", "a dry spot"),
        ("some bare sand", "some barren sand"),
        ("stretches of dunes", "a few dunes"),
        ("arid desert", "an arid plain"),
        ("vast desert", "a vast sea of dunes"),
    ),
    "forest": (
        ("a copse", "a tiny copse"),
        ("a grove", "a small grove"),
        ("patches of woodland", "some woodland"),
        ("a large forest", "large woods"),
        ("dense forest", "dense unbroken forest"),
    ),
    "grassland": (
        ("a tuft of grass", "a tuft or two of grass"),
        ("a small meadow", "a meadow"),
        ("some pasture", "pasture"),
        ("wide grassland", "wide grassy land"),
        ("rolling prairie", "boundless prairie"),
    ),
    "cropland": (
        ("a garden plot", "a vegetable garden"),
        ("a field", "a single field"),
        ("several farms", "several ploughed fields"),
        ("extensive farmland", "extensive crops"),
        ("nothing but cropland", "crops up to the horizon"),
    ),
    "wetland": (
        ("a puddle of mud", "a muddy puddle"),
        ("a boggy hollow", "a bog"),
        ("some marsh", "a marsh"),
        ("a large swamp", "swampy land"),
        ("boundless wetland", "wetland all around"),
    ),
    "rock": (
        ("a boulder", "a lone boulder"),
        ("an outcrop", "a rocky outcrop"),
        ("stony ground", "stony land"),
        ("rugged cliffs", "rugged crags"),
        ("bare bedrock", "a wilderness of bedrock"),
    ),
    "snow": (
        ("a trace of frost", "a little frost"),
        ("a patch of snow", "a snow patch"),
        ("scattered snowfields", "snowfields"),
        ("deep snow", "deep snowdrifts"),
        ("a glacier", "a vast glacier"),
    ),
    "built": (
        ("a lone homestead", "a homestead"),
        ("a hamlet", "a small hamlet"),
        ("a village", "a quiet village"),
        ("a town", "a busy town"),
        ("a city", "a sprawling city"),
    ),
}

FACTOR_LEVELS = (0.15, 0.40, 0.65, 0.88)
"""Least value for each entry from the second on; the first is for what lies below."""

FACTOR_PHRASES: dict[str, Phrases] = {
    "trees": (
        ("treeless",),
        ("with scattered trees", "with a few scattered trees"),
        ("with some trees", "with trees here and there"),
        ("with many trees", "with plenty of trees"),
        ("full of trees", "thick with trees"),
    ),
    "conifers": (
        ("leafy", "broadleaved"),
        ("mostly leafy", "mainly broadleaved"),
        ("mixed",),
        ("mostly coniferous", "mainly spruce"),
        ("all pine", "purely pine"),
    ),
    "greenness": (
        ("parched", "withered"),
        ("dry", "yellowing"),
        ("pale green",),
        ("green", "fresh green"),
        ("lush", "luxuriant"),
    ),
    "building_height": (
        ("with huts", "of low huts"),
        ("with cottages", "of cottages"),
        ("with two-storey houses",),
        ("with apartment blocks", "of apartment blocks"),
        ("with towers", "of tall towers"),
    ),
    "traffic": (
        ("no road", "without a road"),
        ("a narrow lane", "a lane"),
        ("a road",),
        ("busy roads", "busy streets"),
        ("a motorway", "crowded highways"),
    ),
    "relief": (
        ("flat", "level"),
        ("gently undulating",),
        ("hilly",),
        ("steep",),
        ("mountainous", "alpine"),
    ),
    "rain": (
        ("under a clear sky", "under a blue sky"),
        ("under a few clouds", "under passing clouds"),
        ("under an overcast sky", "beneath grey clouds"),
        ("in the rain", "in steady rain"),
        ("in a downpour", "in pouring rain"),
    ),
    "silt": (
        ("crystal clear", "clear"),
        ("bluish",),
        ("greenish",),
        ("murky",),
        ("muddy brown", "brown"),
    ),
    "sun": (
        ("with the sun on the horizon", "in the red of dusk or dawn"),
        ("in low golden light", "in golden light"),
        ("in slanting light",),
        ("in daylight", "in bright daylight"),
        ("around noon", "at midday"),
    ),
    "wind": (
        ("calm", "windless"),
        ("a light breeze",),
        ("a fresh wind",),
        ("a strong wind",),
        ("a gale", "a howling gale"),
    ),
}

SOUND_PHRASES: dict[str, Phrases] = {
    "wind": (("a breath of air",), ("a breeze",), ("wind",), ("gusts of wind",), ("a howling gale",)),
    "tractor": (("a far engine",), ("a tractor in the distance",), ("a tractor",),
                ("farm machines",), ("roaring harvesters",)),
    "hum": (("a faint hum",), ("a low hum",), ("the hum of a town",), ("the drone of a city",),
            ("a heavy urban drone",)),
    "surf": (("a trickle of water", "dripping water"), ("lapping water",), ("small waves",),
             ("breaking waves",), ("roaring surf", "thundering surf")),
    "traffic": (("a single passing car",), ("a few cars",), ("cars",), ("busy traffic",),
                ("thundering trucks",)),
    "frogs": (("one frog",), ("a few frogs",), ("frogs",), ("many croaking frogs",),
              ("a deafening frog chorus",)),
    "voices": (("someone talking",), ("a few voices",), ("people talking",), ("a crowd",),
               ("a bustling crowd",)),
    "ice": (("a faint crackle of frost",), ("a little crunching snow",), ("creaking ice",),
            ("groaning ice",), ("a cracking glacier",)),
    "gulls": (("one gull",), ("a few gulls",), ("gulls",), ("screaming gulls",),
              ("a colony of gulls",)),
    "warblers": (("one warbler",), ("a few warblers",), ("warblers",), ("many warblers",),
                 ("a chorus of warblers",)),
    "goldcrests": (("one goldcrest",), ("a few goldcrests",), ("goldcrests",),
                   ("many goldcrests",), ("a choir of goldcrests",)),
    "brook": (("a distant trickle",), ("a rill",), ("a brook",), ("a rushing stream",),
              ("a waterfall",)),
    "crickets": (("one cricket",), ("a few crickets",), ("crickets",), ("many crickets",),
                 ("shrill crickets everywhere",)),
    "sand": (("a grain of drifting sand",), ("a little drifting sand",), ("hissing sand",),
             ("blowing sand",), ("a sandstorm",)),
    "leaves": (("one rustling twig",), ("a light rustle",), ("rustling leaves",),
               ("swaying branches",), ("a whole forest rustling",)),
    "stones": (("a pebble falling",), ("a few pebbles",), ("falling stones",),
               ("clattering stones",), ("a rockslide",)),
    "rain": (("a few drops",), ("a drizzle",), ("rain",), ("heavy rain",), ("a cloudburst",)),
}

SOUND_LEVELS = (0.06, 0.25, 0.45, 0.65, 0.85)
"""Least loudness for each entry of :data:`SOUND_PHRASES`."""
