"""Numbers that papers print, as data: what a report puts beside measured ones."""
