//! The pages for people, on the admin listener.
