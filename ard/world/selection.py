"""Which drawings the world uses, which of them are one drawing (near-duplicates), and which split may use each group.

A group joins sister sets (noto/noto-v1, fluent/fluent-flat) and bodies that a designer used twice. Base groups are
never exemplars; train, validation and test groups are disjoint except where a class has fewer than 8 of them.
"""

DESIGNERS = {  # designer -> (author, licence)
    "noto": ("Google Inc", "Apache-2.0"),
    "noto-v1": ("Google Inc", "Apache-2.0"),
    "twemoji": ("Twitter, Inc and other contributors", "CC-BY-4.0"),
    "fluent-emoji": ("Microsoft Corporation", "MIT"),
    "fluent-emoji-flat": ("Microsoft Corporation", "MIT"),
    "fxemoji": ("Mozilla Foundation", "Apache-2.0"),
    "emojione": ("Emoji One / EmojiTwo", "CC-BY-4.0"),
    "tux": ("Tux Paint stamps contributors, 2002-2022 Bill Kendrick and others", "GPL-2.0-or-later"),
    "oc": ("Open Clip Art Library contributors", "public domain"),
    "streamline-emojis": ("Streamline", "CC-BY-4.0"),
    "ignacio": ("Mathieu Ignacio (GCompris)", "GPL-3.0-or-later"),
    "gcompris": ("Timothée Giet and others (GCompris)", "GPL-3.0-only"),
    "xteddy": ("Stefan Gustavson, Andreas Tille, Richard Neill", "GPL-2.0-or-later"),
    "own": ("contributors of this repository", "Apache-2.0"),
}


def _noto(*icons: str) -> tuple[str, ...]:
    return tuple(f"{d}:{i}" for i in icons for d in ("noto", "noto-v1"))


def _fluent(*icons: str) -> tuple[str, ...]:
    return tuple(f"{d}:{i}" for i in icons for d in ("fluent-emoji", "fluent-emoji-flat"))


SELECTION: dict[str, dict[str, tuple[str, ...]]] = {
    "bear": {
        "noto-bear": _noto("bear"), "twemoji-bear": ("twemoji:bear",), "fluent-bear": _fluent("bear", "panda", "polar-bear"),
        "fxemoji-bear": ("fxemoji:bear",), "emojione-bear": ("emojione:bear-face",), "noto-panda": _noto("panda"),
        "twemoji-panda": ("twemoji:panda",), "emojione-panda": ("emojione:panda-face",), "fxemoji-panda": ("fxemoji:pandaface",),
        "noto-polar": ("noto:polar-bear",), "twemoji-polar": ("twemoji:polar-bear",),
        "tux-european": ("tux:bears/european-bear.png",), "tux-bear": ("tux:bears/bear.png",),
        "oc-head": ("oc:animals/mammals/bears/orso_architetto_francesc_01.png",),
        "oc-walking": ("oc:animals/mammals/bears/orso_architetto_francesc_03.png",),
        "streamline-bear": ("streamline-emojis:bear-face",), "streamline-panda": ("streamline-emojis:panda-face",),
        "ignacio-bear": ("ignacio:memory/03_bear.svg",), "ignacio-panda": ("ignacio:memory/09_panda.svg",),
        "oc-brown": ("oc:animals/mammals/bears/orso_architetto_francesc_04.png",),
        "oc-profile": ("oc:animals/mammals/bears/ours_etienne_bersac_r.png",),
    },
    "cat": {
        "noto-cat": _noto("cat"), "twemoji-cat": ("twemoji:cat", "twemoji:black-cat"), "fluent-cat": _fluent("cat", "black-cat"),
        "fxemoji-face": ("fxemoji:cat",), "emojione-cat": ("emojione:cat", "emojione:cat-face"), "noto-face": _noto("cat-face"),
        "twemoji-face": ("twemoji:cat-face",), "fluent-face": _fluent("cat-face"), "fxemoji-side": ("fxemoji:catside",),
        "noto-black": ("noto:black-cat",), "tux-kitten": ("tux:cats/kitten.svg",),
        "oc-lying": ("oc:animals/mammals/housecats/gatto_cat_architetto_fra_03.png",),
        "oc-sitting": ("oc:animals/mammals/housecats/gatto_cat_architetto_fra_04.png",),
        "oc-cartoon": ("oc:animals/mammals/cartoon_cat_gerald_g._01.png",),
        "streamline-cat": ("streamline-emojis:cat",), "streamline-face": ("streamline-emojis:cat-face",),
        "ignacio-cat": ("ignacio:memory/01_cat.svg",),
        "oc-curled": ("oc:animals/mammals/housecats/gatto_cat_architetto_fra_01.png",),
        "oc-creeping": ("oc:animals/mammals/housecats/gatto_cat_architetto_fra_02.png",),
        "oc-kitten": ("oc:animals/mammals/housecats/kitten_gerald_g._01.png",),
    },
    "horse": {
        "noto-horse": _noto("horse"), "twemoji-horse": ("twemoji:horse",), "fluent-horse": _fluent("horse"),
        "fxemoji-horse": ("fxemoji:horse",), "emojione-horse": ("emojione:horse",), "noto-face": _noto("horse-face"),
        "twemoji-face": ("twemoji:horse-face",), "fluent-face": _fluent("horse-face"), "emojione-face": ("emojione:horse-face",),
        "fxemoji-face": ("fxemoji:horseface",), "tux-horse": ("tux:equines/horse.png",),
        "oc-galloping": ("oc:animals/mammals/horses/cavallo_architetto_franc_01.png",),
        "oc-running": ("oc:animals/mammals/horses/cavallo_architetto_franc_02.png",),
        "oc-standing": ("oc:animals/mammals/horses/cavallo_architetto_franc_05.png",),
        "oc-front": ("oc:animals/mammals/horses/cavallo_architetto_franc_06.png",),
        "streamline-horse": ("streamline-emojis:horse",), "streamline-face": ("streamline-emojis:horse-face",),
        "oc-head": ("oc:animals/mammals/horses/cavallo_architetto_franc_03.png",),
        "oc-rearing": ("oc:animals/mammals/horses/cavallo_architetto_franc_04.png",),
    },
    "bird": {
        "noto-bird": _noto("bird"), "twemoji-bird": ("twemoji:bird",), "fluent-bird": _fluent("bird"),
        "emojione-bird": ("emojione:bird",), "noto-chick": _noto("baby-chick"), "twemoji-chick": ("twemoji:baby-chick",),
        "fluent-chick": _fluent("baby-chick"), "emojione-chick": ("emojione:baby-chick",), "noto-duck": _noto("duck"),
        "twemoji-duck": ("twemoji:duck",), "fluent-duck": _fluent("duck"), "noto-owl": _noto("owl"), "twemoji-owl": ("twemoji:owl",),
        "fluent-owl": _fluent("owl"), "emojione-owl": ("emojione:owl",), "noto-parrot": ("noto:parrot",),
        "twemoji-parrot": ("twemoji:parrot",), "fluent-parrot": _fluent("parrot"), "noto-penguin": _noto("penguin"),
        "twemoji-penguin": ("twemoji:penguin",), "fluent-penguin": _fluent("penguin"), "fxemoji-penguin": ("fxemoji:penguin",),
        "emojione-penguin": ("emojione:penguin",), "noto-swan": ("noto:swan",), "fluent-goose": _fluent("goose"),
        "twemoji-goose": ("twemoji:goose",), "noto-black": ("noto:black-bird",),
        "oc-yellow": ("oc:animals/birds/bird_of_peace_mauro_oliv_01.png",), "oc-gull": ("oc:animals/birds/gull_marcelo_staudt_01.png",),
        "oc-puffin": ("oc:animals/birds/puffin-md.png",),
        "streamline-head": ("streamline-emojis:bird-1",), "streamline-bird": ("streamline-emojis:bird-2",),
        "streamline-penguin": ("streamline-emojis:penguin-1", "streamline-emojis:penguin-2"),
        "streamline-chick": ("streamline-emojis:baby-chick",), "ignacio-red": ("ignacio:memory/11_redbird.svg",),
        "ignacio-penguin": ("ignacio:memory/05_penguin.svg",), "oc-duck": ("oc:unsorted/Anatra.png",),
        "oc-pigeon": ("oc:unsorted/Colombo.png", "oc:unsorted/colombo2.png"),
        "tux-duck": ("tux:birds/duck.png",), "tux-lark": ("tux:birds/lark.png",), "tux-owl": ("tux:birds/owl.png",),
        "tux-pigeon": ("tux:birds/pigeon.png",), "tux-lorikeet": ("tux:birds/rainbow-lorikeet.png",),
    },
    "dog": {
        "noto-dog": _noto("dog"), "twemoji-dog": ("twemoji:dog", "twemoji:guide-dog"), "fluent-dog": _fluent("dog", "guide-dog"),
        "fxemoji-face": ("fxemoji:dog",), "emojione-dog": ("emojione:dog", "emojione:dog-face"), "noto-face": _noto("dog-face"),
        "twemoji-face": ("twemoji:dog-face",), "fluent-face": _fluent("dog-face"), "fxemoji-side": ("fxemoji:dogside",),
        "noto-poodle": _noto("poodle"), "twemoji-poodle": ("twemoji:poodle",), "fluent-poodle": _fluent("poodle"),
        "noto-guide": ("noto:guide-dog",), "noto-service": ("noto:service-dog",), "twemoji-service": ("twemoji:service-dog",),
        "fluent-service": _fluent("service-dog"), "tux-dog": ("tux:dogs/dog.png",),
        "oc-beagle": ("oc:animals/mammals/dogs/beagle_copper_ganson.png",),
        "oc-sitting": ("oc:animals/mammals/dog_01_drawn_with_strai_02.png",),
        "oc-spotted": ("oc:animals/mammals/dog_03_drawn_with_strai_01.png",),
        "oc-lying": ("oc:animals/mammals/dog_05_drawn_with_strai_01.png",),
        "oc-brown": ("oc:animals/mammals/dog_06_drawn_with_strai_01.png",),
        "streamline-dog": ("streamline-emojis:dog",), "streamline-face": ("streamline-emojis:dog-face",),
        "streamline-poodle": ("streamline-emojis:poodle",),
        "oc-dachshund": ("oc:animals/mammals/dog_04_drawn_with_strai_01.png",),
        "oc-bulldog": ("oc:animals/mammals/dogs/bobi_architetto_francesc_01.png",),
        "oc-bored": ("oc:animals/mammals/dogs/bored_dog_01.png",),
    },
    "cow": {
        "noto-cow": _noto("cow"), "twemoji-cow": ("twemoji:cow",), "fluent-cow": _fluent("cow"), "fxemoji-cow": ("fxemoji:cow",),
        "emojione-cow": ("emojione:cow", "emojione:cow-face"), "noto-face": _noto("cow-face"), "twemoji-face": ("twemoji:cow-face",),
        "fluent-face": _fluent("cow-face"), "noto-ox": _noto("ox"), "twemoji-ox": ("twemoji:ox",),
        "fluent-ox": _fluent("ox", "water-buffalo"), "fxemoji-ox": ("fxemoji:ox", "fxemoji:waterbuffalo"),
        "emojione-ox": ("emojione:ox", "emojione:water-buffalo"), "noto-buffalo": _noto("water-buffalo"),
        "twemoji-buffalo": ("twemoji:water-buffalo",), "tux-cow": ("tux:bovines/cow.png",), "tux-bull": ("tux:bovines/bull.png",),
        "tux-zebu": ("tux:bovines/zebu.png",),
        "streamline-cow": ("streamline-emojis:cow",), "streamline-face": ("streamline-emojis:cow-face",),
        "streamline-ox": ("streamline-emojis:ox",), "streamline-buffalo": ("streamline-emojis:water-buffalo",),
        "ignacio-cow": ("ignacio:memory/06_cow.svg",),
        "oc-spotted": ("oc:animals/mammals/vacca_pezzata_rossa_val_01.png",),
        "tux-white": ("tux:bovines/cow_white.png",),
    },
    "teddy bear": {
        "noto": ("noto:teddy-bear",), "twemoji": ("twemoji:teddy-bear",), "fluent": _fluent("teddy-bear"),
        "tux-cartoon": ("tux:bears/cartoon/teddy_bear.png",), "tux-edward": ("tux:bears/toys/edward_bear.png",),
        "oc-simple": ("oc:recreation/toys/simple_teddy_bear_gerald_01.png", "oc:recreation/toys/simple_teddy_bear_with__01.png"),
        "oc-stylized": ("oc:recreation/toys/stylized_teddy_bear_gera_01.png", "oc:recreation/toys/stylized_teddy_bear_wit_01.png"),
        "oc-jarno": ("oc:recreation/toys/teddybear_jarno_vasamaa_.png",),
        "gcompris": ("gcompris:number_sequence/bear2.svg",), "xteddy": ("xteddy:xteddy.png", "xteddy:teddy.png"),
        "xteddy-brummi": ("xteddy:xbrummi.png",), "xteddy-trouble": ("xteddy:xtrouble.png",),
        "own-patched": ("own:teddy_bear/patched.svg",), "own-standing": ("own:teddy_bear/standing.svg",),
    },
    "zebra": {
        "noto": ("noto:zebra",), "twemoji": ("twemoji:zebra",), "fluent": _fluent("zebra"), "tux-zebra": ("tux:equines/zebra.png",),
        "tux-grazing": ("tux:equines/zebra2.svg",),
        "own-face": ("own:zebra/face.svg",), "own-foal": ("own:zebra/foal.svg",),
        "own-galloping": ("own:zebra/galloping.svg",),
        "own-grazing": ("own:zebra/grazing.svg",), "own-lying": ("own:zebra/lying.svg",),
        "own-sitting": ("own:zebra/sitting.svg",), "own-walking": ("own:zebra/walking.svg",),
    },
    "sheep": {
        "noto-ewe": _noto("ewe"), "twemoji-ewe": ("twemoji:ewe", "twemoji:ram"), "fluent-ewe": _fluent("ewe", "ram"),
        "emojione-ewe": ("emojione:ewe",), "noto-ram": _noto("ram"), "fxemoji-ram": ("fxemoji:ram",), "emojione-ram": ("emojione:ram",),
        "fxemoji-sheep": ("fxemoji:sheep",), "tux-ram": ("tux:bovines/ram.png",),
        "streamline-ewe": ("streamline-emojis:ewe-1", "streamline-emojis:ewe-2"),
        "streamline-ram": ("streamline-emojis:ram",),
        "ignacio-sheep": ("ignacio:memory/07_sheep.svg",),
        "oc-head": ("oc:animals/mammals/pecora_architetto_france_01.png",),
        "oc-standing": ("oc:animals/mammals/sheep-md-v0.1.png",), "oc-outlined": ("oc:unsorted/pecorella.png",),
        "tux-sheep": ("tux:bovines/sheep.png",), "tux-lamb": ("tux:bovines/sheep_lamb.png",),
    },
    "elephant": {
        "noto": _noto("elephant"), "twemoji": ("twemoji:elephant",), "fluent": _fluent("elephant"), "fxemoji": ("fxemoji:elephant",),
        "emojione": ("emojione:elephant",), "noto-mammoth": ("noto:mammoth",), "twemoji-mammoth": ("twemoji:mammoth",),
        "fluent-mammoth": _fluent("mammoth"), "tux-elephant": ("tux:elephant.png",),
        "streamline": ("streamline-emojis:elephant",), "ignacio": ("ignacio:memory/16_elephant.svg",),
        "xteddy": ("xteddy:xruessel.png",), "oc-front": ("oc:animals/mammals/elefante01_architetto_fr_01.png",),
        "oc-walking": ("oc:animals/mammals/elefante02_architetto_fr_01.png",),
        "oc-running": ("oc:unsorted/elefante_in_corsa.png",),
        "oc-blue": ("oc:unsorted/elefantone.png",),
    },
}

FILLERS = tuple(f"noto:{name}" for name in (
    "evergreen-tree", "cactus", "mushroom", "sunflower", "tulip", "soccer-ball", "basketball", "umbrella", "chair", "tent",
    "guitar", "balloon", "sailboat", "red-apple", "wrapped-gift", "top-hat", "bicycle", "automobile", "fire-extinguisher",
)) + tuple(f"twemoji:{name}" for name in (
    "deciduous-tree", "mushroom", "sunflower", "soccer-ball", "umbrella", "chair", "guitar", "red-apple", "wrapped-gift",
    "automobile", "bucket", "potted-plant", "fire-extinguisher",
))

_EXEMPLARS = {  # class -> groups of train | val | test; every other group is base
    "bear": ("noto-bear emojione-panda tux-bear", "twemoji-polar", "emojione-bear noto-panda oc-walking fxemoji-bear"),
    "cat": ("noto-cat fluent-face oc-sitting", "fxemoji-side", "twemoji-cat emojione-cat noto-black oc-cartoon"),
    "horse": ("noto-horse fluent-face oc-running", "emojione-face", "twemoji-horse emojione-horse noto-face oc-front"),
    "bird": ("noto-bird fluent-duck twemoji-owl oc-yellow emojione-penguin", "twemoji-goose noto-black",
             "twemoji-bird fluent-owl noto-parrot fxemoji-penguin emojione-chick oc-gull"),
    "dog": ("noto-dog twemoji-service fluent-poodle oc-beagle", "noto-poodle", "twemoji-dog emojione-dog noto-face oc-sitting oc-brown"),
    "cow": ("noto-cow fluent-ox tux-bull", "twemoji-cow", "fluent-cow noto-ox emojione-cow twemoji-buffalo"),
    "teddy bear": ("twemoji oc-stylized", "oc-jarno", "noto oc-simple"),
    "zebra": ("noto", "twemoji", "fluent"),
    "sheep": ("fluent-ewe emojione-ewe", "fxemoji-ram", "noto-ewe emojione-ram"),
    "elephant": ("twemoji noto-mammoth", "fxemoji", "noto emojione fluent-mammoth"),
}


def _splits() -> dict[str, dict[str, tuple[str, ...]]]:
    out = {}
    for class_name, parts in _EXEMPLARS.items():
        sets = {split: set(names.split()) for split, names in zip(("train", "val", "test"), parts)}
        unknown = set().union(*sets.values()) - SELECTION[class_name].keys()
        assert not unknown, f"{class_name}: {unknown} are not in the selection"
        out[class_name] = {
            group: tuple(split for split, names in sets.items() if group in names) or ("base",)
            for group in SELECTION[class_name]
        }
    return out


SPLIT_OF_GROUP = _splits()
