//! Parses the arguments and runs a command.

fn main() {}
