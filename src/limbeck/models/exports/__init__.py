"""A student in the formats that others run; what a format can't express is refused with the reason."""
