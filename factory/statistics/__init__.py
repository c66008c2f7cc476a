"""Statistics of shares and scores: intervals, paired differences, significance, rank correlation and AUROC."""
