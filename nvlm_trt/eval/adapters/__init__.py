"""Published data sets in the formats of their publishers, from a folder that the user has, as samples."""
