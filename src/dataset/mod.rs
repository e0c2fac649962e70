//! Feature sets, training counts and shots.
