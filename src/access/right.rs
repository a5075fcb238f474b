//! What somebody may do, and sets of it.

use std::fmt;
use std::ops::BitOr;

use serde::{Deserialize, Serialize};

/// One thing that somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Right {
    /// Read blobs, action results and operations.
    Read,
    /// Store blobs.
    Write,
    /// Say what an action results in, or what a URI stands for: what others build with.
    CacheWrite,
    /// Have actions run.
    Execute,
    /// Run actions for the farm. It is for the whole farm, since a worker gets the actions of every instance.
    Work,
    /// Operate the farm: change what it does, and look at all of it. It is for the whole farm, too.
    Admin,
}

impl Right {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Read, Self::Write, Self::CacheWrite, Self::Execute, Self::Work, Self::Admin];

    /// As the configuration spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::CacheWrite => "cache-write",
            Self::Execute => "execute",
            Self::Work => "work",
            Self::Admin => "admin",
        }
    }

    /// Whether it is for the whole farm, whatever the instance.
    pub fn is_of_farm(self) -> bool {
        matches!(self, Self::Work | Self::Admin)
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of rights. Where it is demanded, one of them is enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights(u8);

impl Rights {
    pub const NONE: Self = Self(0);

    pub fn all() -> Self {
        Right::ALL.into_iter().collect()
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn has(self, right: Right) -> bool {
        self.0 & right.bit() != 0
    }

    /// Whether one of `others` is among them.
    pub fn has_any(self, others: Self) -> bool {
        self.0 & others.0 != 0
    }
}

impl From<Right> for Rights {
    fn from(right: Right) -> Self {
        Self(right.bit())
    }
}

impl<const N: usize> From<[Right; N]> for Rights {
    fn from(rights: [Right; N]) -> Self {
        rights.into_iter().collect()
    }
}

impl FromIterator<Right> for Rights {
    fn from_iter<I: IntoIterator<Item = Right>>(rights: I) -> Self {
        rights.into_iter().fold(Self::NONE, |all, right| all | right)
    }
}

impl<R: Into<Self>> BitOr<R> for Rights {
    type Output = Self;

    fn bitor(self, other: R) -> Self {
        Self(self.0 | other.into().0)
    }
}

impl BitOr for Right {
    type Output = Rights;

    fn bitor(self, other: Self) -> Rights {
        Rights::from(self) | other
    }
}

/// As in `write or execute`.
impl fmt::Display for Rights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> =
            Right::ALL.into_iter().filter(|right| self.has(*right)).map(Right::name).collect();
        f.write_str(&names.join(" or "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it_and_says_so() {
        let set = Right::Write | Right::Execute;
        assert!(set.has(Right::Write) && set.has(Right::Execute) && !set.has(Right::Read));
        assert!(set.has_any(Right::Execute | Right::Admin) && !set.has_any(Right::Admin.into()));
        assert_eq!(set.to_string(), "write or execute");
        assert!(Right::ALL.into_iter().all(|right| Rights::all().has(right) && !Rights::NONE.has(right)));
    }
}
