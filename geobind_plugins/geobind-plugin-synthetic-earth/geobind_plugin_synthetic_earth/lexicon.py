"""The words for how much of something there is.

Each entry goes from little to much: ``;`` divides levels, ``/`` phrases that mean the same. A level
has words of its own ("a pond", "open sea"), so that a caption says how much even to a reader who
only counts words.
"""

from __future__ import annotations

Phrases = tuple[tuple[str, ...], ...]


def _levels(text: str) -> Phrases:
    return tuple(tuple(phrase.strip() for phrase in level.split("/")) for level in text.split(";"))


COVER_LEVELS = (0.01, 0.04, 0.12, 0.32, 0.60)
"""Least share of area for each level of :data:`COVER_PHRASES`."""

COVER_PHRASES: dict[str, Phrases] = {
    "water": _levels(
        "a pond / a small pond; a lake with waves / waves on a lake; "
        "a bay with waves / waves in a bay; a wide stretch of water with waves / waves on broad water; "
        "open sea with waves / waves of the open sea"
    ),
    "beach": _levels(
        "a sliver of beach / a little beach; a strip of beach / a narrow beach; a beach / a sandy beach; "
        "a broad beach / a wide beach; an endless beach / a vast beach"
    ),
    "desert": _levels(
        "a dry patch / a dry spot; some bare sand / some barren sand; "
        "stretches of dunes / a few dunes; arid desert / an arid plain; "
        "vast desert / a vast sea of dunes"
    ),
    "forest": _levels(
        "a copse / a tiny copse; a grove / a small grove; patches of woodland / some woodland; "
        "a large forest / large woods; dense forest / dense unbroken forest"
    ),
    "grassland": _levels(
        "a tuft of grass / a tuft or two of grass; a small meadow / a meadow; "
        "some pasture / pasture; wide grassland / wide grassy land; "
        "rolling prairie / boundless prairie"
    ),
    "cropland": _levels(
        "a garden plot / a vegetable garden; a field / a single field; "
        "several farms / several ploughed fields; extensive farmland / extensive crops; "
        "nothing but cropland / crops up to the horizon"
    ),
    "wetland": _levels(
        "a puddle of mud / a muddy puddle; a boggy hollow / a bog; some marsh / a marsh; "
        "a large swamp / swampy land; boundless wetland / wetland all around"
    ),
    "rock": _levels(
        "a boulder / a lone boulder; an outcrop / a rocky outcrop; stony ground / stony land; "
        "rugged cliffs / rugged crags; bare bedrock / a wilderness of bedrock"
    ),
    "snow": _levels(
        "a trace of frost / a little frost; a patch of snow / a snow patch; "
        "scattered snowfields / snowfields; deep snow / deep snowdrifts; "
        "a glacier / a vast glacier"
    ),
    "built": _levels(
        "a lone homestead / a homestead; a hamlet / a small hamlet; "
        "a village / a small town; a town / a busy town; a city / a sprawling city"
    ),
}

FACTOR_LEVELS = (0.15, 0.40, 0.65, 0.88)
"""Least value for each level of :data:`FACTOR_PHRASES` from the second on."""

FACTOR_PHRASES: dict[str, Phrases] = {
    "trees": _levels(
        "treeless; with scattered trees / with a few scattered trees; "
        "with some trees / with trees here and there; with many trees / with plenty of trees; "
        "full of trees / thick with trees"
    ),
    "conifers": _levels(
        "leafy / broadleaved; mostly leafy / mainly broadleaved; mixed; "
        "mostly coniferous / mainly spruce; all pine / purely pine"
    ),
    "greenness": _levels("parched / withered; dry / yellowing; pale green; green / fresh green; lush / luxuriant"),
    "building_height": _levels(
        "with huts / of low huts; with cottages / of cottages; with two-storey houses; "
        "with apartment blocks / of apartment blocks; with towers / of tall towers"
    ),
    "traffic": _levels(
        "no road / without a road; a narrow lane / a lane; a road; busy roads / busy streets; "
        "a motorway / crowded highways"
    ),
    "relief": _levels("flat / level; gently undulating; hilly; steep; mountainous / alpine"),
    "rain": _levels(
        "under a clear sky / under a blue sky; under a few clouds / under passing clouds; "
        "under an overcast sky / beneath grey clouds; in the rain / in steady rain; "
        "in a downpour / in pouring rain"
    ),
    "silt": _levels("crystal clear / clear; bluish; greenish; murky; muddy brown / brown"),
    "sun": _levels(
        "with the sun on the horizon / in the red of dusk or dawn; "
        "in low golden light / in golden light; in slanting light; "
        "in daylight / in bright daylight; around noon / at midday"
    ),
    "soil_dark": _levels("chalky; pale; plain; dark; blackish"),
    "soil_red": _levels("grey; ochre; brown; russet; red"),
    "leaf_gold": _levels("silvery; grey-green; green; olive; golden"),
    "dust": _levels("in violet haze; in thin haze; in clean air; in dusty air; in yellow dust"),
    "wind": _levels("calm / windless; a light breeze; a fresh wind; a strong wind; a gale / a howling gale"),
}

SOUND_LEVELS = (0.06, 0.25, 0.45, 0.65, 0.85)
"""Least loudness for each level of :data:`SOUND_PHRASES`."""

SOUND_PHRASES: dict[str, Phrases] = {
    "wind": _levels("a breath of air; a breeze; wind; gusts of wind; a howling gale"),
    "tractor": _levels("a far engine; a tractor in the distance; a tractor; farm machines; roaring harvesters"),
    "hum": _levels("a faint hum; a low hum; the hum of a town; the drone of a city; a heavy urban drone"),
    "surf": _levels(
        "a trickle of water / dripping water; lapping water; small waves; breaking waves; "
        "roaring surf / thundering surf"
    ),
    "traffic": _levels("a single passing car; a few cars; cars; busy traffic; thundering trucks"),
    "frogs": _levels("one frog; a few frogs; frogs; many croaking frogs; a deafening frog chorus"),
    "voices": _levels("someone talking; a few voices; people talking; a crowd; a bustling crowd"),
    "doves": _levels("one dove; a few doves; doves; many doves; a flock of cooing doves"),
    "ice": _levels("a faint crackle of frost; a little crunching snow; creaking ice; groaning ice; a cracking glacier"),
    "gulls": _levels("one gull; a few gulls; gulls; screaming gulls; a colony of gulls"),
    "warblers": _levels("one warbler; a few warblers; warblers; many warblers; a chorus of warblers"),
    "goldcrests": _levels("one goldcrest; a few goldcrests; goldcrests; many goldcrests; a choir of goldcrests"),
    "brook": _levels("a distant trickle; a rill; a brook; a rushing stream; a waterfall"),
    "crickets": _levels("one cricket; a few crickets; crickets; many crickets; shrill crickets everywhere"),
    "cicadas": _levels("one cicada; a few cicadas; cicadas; many cicadas; shrill cicadas everywhere"),
    "sand": _levels("a grain of drifting sand; a little drifting sand; hissing sand; blowing sand; a sandstorm"),
    "leaves": _levels("one rustling twig; a light rustle; rustling leaves; swaying branches; a whole forest rustling"),
    "stones": _levels("a pebble falling; a few pebbles; falling stones; clattering stones; a rockslide"),
    "rain": _levels("a few drops; a drizzle; rain; heavy rain; a cloudburst"),
}
