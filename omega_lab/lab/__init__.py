"""The laboratory: recompute what was judged, play other rules, and let cheats loose on them."""
