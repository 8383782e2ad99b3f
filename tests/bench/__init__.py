"""`make bench`: this project, its peer and the physical floor, side by side."""
