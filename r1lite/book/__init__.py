"""What every chapter of the book uses: a fixed start, `show`, and `agree`."""
