"""What every room uses: errors, geometry, slides and patches as data, recipes, JSON, CSV and limits; it needs numpy only."""
