"""Other attribution methods behind the one interface that the AR detector is scored through as well."""
