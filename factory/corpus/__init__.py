"""What is trained on: files of rows and pictures, read, audited, labelled and put into batches."""
