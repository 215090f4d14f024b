"""What runs without torch: exported students, their predictions, and whether live traffic has drifted."""
