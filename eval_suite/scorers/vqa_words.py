"""Word lists of the VQA normalisation."""

from __future__ import annotations

ARTICLES = ("a", "an", "the")
NUMBERS = {"none": "0"} | {
    word: str(i)
    for i, word in enumerate(("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"))
}
_PLAIN = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've
who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
_LAST_KEPT = """
couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've someone'd've something'd've there'd've
they'd've we'd've who'd've wouldn't've you'd've
"""
# Entries that no rule makes; some turn a right form into a wrong one, and those with capitals never match a lower-cased
# word.
_ODD = {
    "couldn'tve": "couldn't've",
    "hadn'tve": "hadn't've",
    "he'dve": "he'd've",
    "it'dve": "it'd've",
    "mightn'tve": "mightn't've",
    "she'dve": "she'd've",
    "shouldn'tve": "shouldn't've",
    "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've",
    "somebody'dve": "somebody'd've",
    "someone'dve": "someone'd've",
    "something'dve": "something'd've",
    "there'dve": "there'd've",
    "they'dve": "they'd've",
    "we'dve": "we'd've",
    "who'dve": "who'd've",
    "wouldn'tve": "wouldn't've",
    "you'dve": "you'd've",
    "'ow'sat": "'ow's'at",
    "'ows'at": "'ow's'at",
    "ow's'at": "'ow's'at",
    "let's": "let's",
    "she's": "she's",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
    "Id've": "I'd've",
    "I'dve": "I'd've",
    "Im": "I'm",
    "Ive": "I've",
}
CONTRACTIONS = (
    {word.replace("'", ""): word for word in _PLAIN.split()}
    | {word.replace("'", "", 1): word for word in _LAST_KEPT.split()}
    | _ODD
)
