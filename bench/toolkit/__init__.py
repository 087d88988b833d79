"""What the scripts share: their entry, rounds and medians, processes to be measured, slow links, a quiet machine."""
