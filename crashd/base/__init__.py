"""Files and messages, each written once; everything but `domain` may import these modules."""
