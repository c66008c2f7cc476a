"""Statistics of shares and scores: intervals, paired differences, rank correlation and AUROC."""
