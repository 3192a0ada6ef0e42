"""What the page starts with: one press of the button shows something."""

from __future__ import annotations

from typing import Final

QUERY: Final = "How do foxes find food under the snow?"

DOCUMENTS: Final = """\
Foxes appear in the fables of many countries, where they are clever and seldom honest.

How to find the fox trail: park under the bridge, and wear boots, for there is snow until May.

In cold climates the Arctic fox changes the colour of its fur from brown to white.

Bread rises faster in a warm kitchen, and a pinch of sugar wakes the yeast.

In winter foxes hunt by ear. They hear mice and voles move below the white blanket, leap high and \
dive at them nose first.

Winter tyres grip better below seven degrees, because their rubber stays soft.

Berries, beetles and earthworms are on the menu of foxes from June to September.

En invierno el zorro busca ratones bajo la nieve.

Bread rises faster in a warm kitchen, and a pinch of sugar wakes the yeast.
"""
