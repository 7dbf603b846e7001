"""Names that begin with a letter of their own: C. difficile is no option C, B cells are no B.

Medical and biological options have them.  Nothing but the word tells "C. difficile" from
"C. aspirin", so these are the usual species of the letters A to J.
"""

from __future__ import annotations

import re

_EPITHETS = {
    "A": "baumannii fumigatus flavus niger israelii aegypti albopictus lumbricoides duodenale"
    " actinomycetemcomitans hydrophila phagocytophilum thaliana",
    "B": "anthracis cereus subtilis fragilis pertussis parapertussis burgdorferi recurrentis"
    " henselae quintana bacilliformis melitensis abortus suis canis dermatitidis cepacia"
    " pseudomallei coli microti hominis",
    "C": "difficile botulinum perfringens tetani septicum diphtheriae jejuni coli fetus albicans"
    " glabrata krusei auris tropicalis parapsilosis neoformans gattii immitis posadasii trachomatis"
    " pneumoniae psittaci burnetii freundii parvum hominis canimorsus elegans sinensis",
    "D": "latum caninum melanogaster medinensis radiodurans discoideum",
    "E": "coli faecalis faecium cloacae aerogenes histolytica vermicularis granulosus"
    " multilocularis corrodens chaffeensis floccosum rhusiopathiae",
    "F": "tularensis nucleatum necrophorum hepatica",
    "G": "lamblia intestinalis duodenalis vaginalis",
    "H": "pylori influenzae parainfluenzae ducreyi capsulatum aegyptius sapiens nana hominis",
    "I": "belli scapularis ricinus",
    "J": "curcas",
}


def _pattern() -> re.Pattern[str]:
    names = []
    for letter, epithets in _EPITHETS.items():
        names.append(rf"{letter}\.?\s*(?:{'|'.join(epithets.split())})\b")
    return re.compile("|".join(names))


_SPECIES = _pattern()
_OTHERS = re.compile(r"[A-J]\s+(?:cells?|lymphocytes?|dimers?|peptides?)\b", re.IGNORECASE)


def is_name(text: str, start: int) -> bool:
    """Return whether a name begins at a place of a text: "C. difficile", "E coli", "B cells"."""
    found = _SPECIES.match(text, start) or _OTHERS.match(text, start)
    return found is not None
