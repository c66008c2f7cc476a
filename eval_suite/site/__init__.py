"""What README and docs/ are made with: their pictures, and the reference pages that are generated as they are built."""
