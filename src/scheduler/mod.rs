//! Which worker runs which action, when.
//!
//! [`core`] decides everything and does nothing; the driver feeds it events and performs its effects.
