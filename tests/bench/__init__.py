"""Speed, as ratios between our programs and the originals, measured in turn in one run."""
