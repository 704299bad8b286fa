"""From class names to prompts: plain words, the right article, and filled templates."""

import re

from ard.templates.sentences import COCO_SETTINGS

# Sounds, not letters: "an hourglass", "a unicycle". Only what English class names need.
_AN_DESPITE_LETTER = re.compile(r"(hour|honest|honou?r|heir)", re.I)
_A_DESPITE_LETTER = re.compile(r"(uni(?!n)|uri|use|usu|ute|eu|ewe|one\b|once|ukulele|ufo)", re.I)

# Nouns of the class lists that come in pairs: "a pair of scissors is ...", so that the templates' verbs stay singular.
_PAIRS = frozenset("""
    binoculars clippers goggles leggings overalls pajamas pantyhose pliers scissors shears short_pants
    spectacles sunglasses suspenders sweat_pants tights tongs trousers underdrawers
""".split())

# Nouns of the class lists that take no article: "Milk is served on a silver plate".
_MASS = frozenset("""
    applesauce armor asparagus bait bamboo batter bean_curd beef bread broccoli brussels_sprouts bubble_gum
    butter cayenne celery chain_mail chinaware chocolate_milk chocolate_mousse cider cleansing_agent cocoa
    coleslaw coloring_material cornbread cornmeal crabmeat crape dental_floss detergent dishwasher_detergent
    duct_tape edible_corn flannel fleece French_toast fudge fruit_juice garbage garlic gelatin gift_wrap ginger
    grits ham honey hot_sauce hummus icecream jam jewelry leather Lego lemonade lettuce lip_balm liquor
    mashed_potato medicine milk money olive_oil orange_juice parchment peanut_butter perfume pottery root_beer
    salami salsa shampoo shaving_cream soap sour_cream soya_milk sportswear string_cheese sushi Tabasco_sauce
    tequila tinfoil tinsel tissue_paper toast toilet_tissue toothpaste underwear vinegar vodka whipped_cream
    yogurt
""".split())


def words(class_name: str) -> str:
    """The words of a COCO or LVIS class name: what stands before a bracket, with spaces.

    >>> words("bat_(animal)"), words("teddy bear"), words("monitor_(computer_equipment) computer_monitor")
    ('bat', 'teddy bear', 'monitor')
    """
    text = class_name.split("(")[0].replace("_", " ").strip()
    if not text:
        raise ValueError(f"class name {class_name!r} has no words before its bracket")
    return text


def with_article(noun: str) -> str:
    """A noun phrase with the article its sound asks for; pairs become "a pair of ...", uncountable nouns stay bare.

    A concept's token such as "<v1>" in front takes "a", and what follows it decides about pairs and uncountable nouns.

    >>> [with_article(n) for n in ("elephant", "unicycle", "hourglass", "<v1> elephant", "trousers", "milk")]
    ['an elephant', 'a unicycle', 'an hourglass', 'a <v1> elephant', 'a pair of trousers', 'milk']
    """
    bare = re.sub(r"^(<[^>]*>\s*)+", "", noun)
    key = bare.replace(" ", "_")
    if key in _MASS:
        return noun
    if key in _PAIRS:
        return f"a pair of {noun}"
    vowel = re.match(r"[aeiou]", noun, re.I) and not _A_DESPITE_LETTER.match(noun)
    return f"an {noun}" if vowel or _AN_DESPITE_LETTER.match(noun) else f"a {noun}"


def fill(template: str, noun: str) -> str:
    """Put a noun phrase into a template with exactly one "{}", whether or not the template has an article before it.

    >>> fill("A {} is resting.", "elephant"), fill("A photo of {} standing in a forest.", "<v1> cat")
    ('An elephant is resting.', 'A photo of a <v1> cat standing in a forest.')
    """
    if template.count("{}") != 1:
        raise ValueError(f"expected a template with one {{}}, found {template!r}")
    before, after = re.sub(r"\b[Aa]n? \{\}", "{}", template).split("{}")
    phrase = with_article(noun)
    return before + (phrase if before else phrase[:1].upper() + phrase[1:]) + after


def context_medium(template_index: int) -> tuple[str, str]:
    """(context, medium) of a template of Table 4, in the words of `ard.world`.

    >>> context_medium(3), context_medium(6)
    (('city street', 'photo'), ('beach', 'watercolor illustration'))
    """
    if not 0 <= template_index < len(COCO_SETTINGS):
        raise ValueError(f"expected a template of Table 4, 0 to {len(COCO_SETTINGS) - 1}, found {template_index}")
    return COCO_SETTINGS[template_index]
