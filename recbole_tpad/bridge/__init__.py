"""Everything that touches RecBole's insides: configuration, data, training, registration."""
