//! Users with passwords, for simple clients of the HTTP cache: `htpasswd -B` makes the file.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::Semaphore;

use crate::error::{Error, Kind, Result};
use crate::reload::{self, Content, NamedFile, Reloaded};
use crate::tasks;

use super::budget::Budget;
use super::config::{BasicConfig, is_name};
use super::identity::{Identity, Proof};
use super::remembered::Remembered;

/// Bytes of the file: some 10,000 users.
const FILE_BYTES_MAX: usize = 1 << 20;

/// Verifications at a time. bcrypt keeps a core busy for a tenth of a second on purpose; the rest of the machine has work to do.
const VERIFICATIONS_MAX: usize = 2;

/// How long a client waits for its turn to be verified.
const TURN_MAX: Duration = Duration::from_secs(10);

/// How long a verified password is taken without a look.
const REMEMBERED_FOR: Duration = Duration::from_secs(5 * 60);

/// Wrong passwords from one address: so many at once, and one more after each pause.
const GUESSES_MAX: u32 = 10;
const GUESS_PAUSE: Duration = Duration::from_secs(6);

/// Addresses whose guesses are counted; when there are more, those without a recent wrong one make room.
const ADDRESSES_MAX: usize = 4096;

/// The users of a file, anew when it changes.
#[derive(Debug)]
pub(super) struct Passwords {
    users: Arc<Reloaded<Users>>,
    turns: Arc<Semaphore>,
    guesses: Mutex<HashMap<Option<IpAddr>, Budget>>,
}

/// The users as the file had them at one time. What was verified is remembered with them, so that a password that is changed or gone opens
/// nothing from then on.
struct Users {
    by_name: HashMap<String, (String, Arc<Identity>)>,
    remembered: Remembered,
}

impl Passwords {
    /// # Errors
    /// `Invalid` when the file cannot be read or a line is not a name and a bcrypt hash.
    pub(super) fn open(config: &BasicConfig) -> Result<Self> {
        let files = vec![named(config)];
        let config = config.clone();
        let make = move |contents: &[Content]| Users::read(&contents[0], &config);
        Ok(Self {
            users: Reloaded::new((reload::Kind::Passwords, "access".to_owned()), files, Box::new(make))?,
            turns: Arc::new(Semaphore::new(VERIFICATIONS_MAX)),
            guesses: Mutex::default(),
        })
    }

    /// Whose name and password `encoded` (in Base64) has.
    ///
    /// # Errors
    /// `Unauthenticated` when they are wrong, `Exhausted` when too many from that address were.
    pub(super) async fn verify(&self, encoded: &str, address: Option<IpAddr>) -> Result<Arc<Identity>> {
        let decoded = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let credential = decoded.ok_or_else(wrong)?;
        let (name, password) = credential.split_once(':').ok_or_else(wrong)?;
        let users = self.users.current();
        if let Some(identity) = users.remembered.find(credential.as_bytes(), Instant::now()) {
            return Ok(identity);
        }
        let busy = |_| Error::new(Kind::Exhausted, "too many passwords are being verified");
        let turn = Arc::clone(&self.turns).acquire_owned();
        let turn = tokio::time::timeout(TURN_MAX, turn).await.map_err(busy)?.expect("nobody closes it");
        // Another request of the same client may have had its turn meanwhile.
        if let Some(identity) = users.remembered.find(credential.as_bytes(), Instant::now()) {
            return Ok(identity);
        }
        // Taken before the answer is known: a client that goes away has guessed all the same.
        self.take_guess(address)?;
        let user = users.by_name.get(name);
        // A name that nobody has takes as long as one that somebody has.
        let Some((hash, _)) = user.or_else(|| users.by_name.values().next()) else { return Err(wrong()) };
        let (hash, password) = (hash.clone(), password.to_owned());
        // The work goes on when nobody waits for it, so it has the turn.
        let is_right = tasks::blocking(move || {
            let _turn = turn;
            Ok(bcrypt::verify(password, &hash).unwrap_or(false))
        });
        let is_right = is_right.await?;
        let Some((_, identity)) = user.filter(|_| is_right) else { return Err(wrong()) };
        let until = Instant::now() + REMEMBERED_FOR;
        users.remembered.insert(credential.as_bytes(), Arc::clone(identity), until);
        self.give_back_guess(address);
        Ok(Arc::clone(identity))
    }

    fn take_guess(&self, address: Option<IpAddr>) -> Result<()> {
        let mut guesses = self.guesses.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if guesses.len() >= ADDRESSES_MAX {
            guesses.retain(|_, budget| !budget.is_full(now));
        }
        if guesses.len() >= ADDRESSES_MAX && !guesses.contains_key(&address) {
            return Err(Error::new(Kind::Exhausted, "too many wrong passwords came; wait a minute"));
        }
        let full = || Budget::new(GUESSES_MAX, GUESS_PAUSE, now);
        if guesses.entry(address).or_insert_with(full).take(now) {
            return Ok(());
        }
        let sentence = "too many wrong passwords came from this address; wait a minute";
        Err(Error::new(Kind::Exhausted, sentence))
    }

    fn give_back_guess(&self, address: Option<IpAddr>) {
        let mut guesses = self.guesses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(budget) = guesses.get_mut(&address) {
            budget.give_back();
        }
    }
}

impl Users {
    /// # Errors
    /// `Invalid` with the line that is wrong.
    fn read(content: &Content, config: &BasicConfig) -> Result<Self> {
        let bytes = content.bytes()?;
        if bytes.len() > FILE_BYTES_MAX {
            return Err(content.wrong(&format!("it has more than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| content.wrong("it is no text"))?;
        let by_name = parse(text, config).map_err(|error| content.wrong(&error.public_message()))?;
        Ok(Self { by_name, remembered: Remembered::new()? })
    }
}

fn named(config: &BasicConfig) -> NamedFile {
    NamedFile { key: "access.basic.file".to_owned(), path: config.file.clone() }
}

/// What is wrong with the file, as a sentence for the operator.
pub(super) fn file_problem(config: &BasicConfig) -> Option<String> {
    Users::read(&named(config).read(), config).err().map(|error| error.chain())
}

fn parse(text: &str, config: &BasicConfig) -> Result<HashMap<String, (String, Arc<Identity>)>> {
    let mut users = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = number + 1;
        let malformed = || Error::invalid(format!("line {number} is not a name, a colon and a hash"));
        let (name, hash) = line.split_once(':').filter(|(name, _)| is_name(name)).ok_or_else(malformed)?;
        if hash.parse::<bcrypt::HashParts>().is_err() {
            return Err(Error::invalid(format!(
                "line {number}: only bcrypt is taken; `htpasswd -B` makes it"
            )));
        }
        let groups = config.groups.get(name).cloned().unwrap_or_default();
        let identity = Arc::new(Identity::new(Proof::Basic, name, groups));
        users.insert(name.to_owned(), (hash.to_owned(), identity));
    }
    Ok(users)
}

fn wrong() -> Error {
    Error::new(Kind::Unauthenticated, "the user or the password is wrong")
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::reload::{Look, Watched};

    /// The least cost that there is, so that the tests are quick.
    const COST: u32 = 4;

    fn passwords(text: &str) -> Result<Passwords> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let groups = [("ann".to_owned(), vec!["developers".to_owned()])].into();
        Passwords::open(&BasicConfig { file: file.path().to_owned(), groups })
    }

    fn user(name: &str, password: &str) -> String {
        format!("{name}:{}\n", bcrypt::hash(password, COST).unwrap())
    }

    #[tokio::test]
    async fn the_right_password_is_taken_and_nothing_else() {
        let text = format!("# users\n\n{}{}", user("ann", "se:cret"), user("ben", "other"));
        let passwords = passwords(&text).unwrap();
        for _ in 0..2 {
            let identity = passwords.verify(&STANDARD.encode("ann:se:cret"), None).await.unwrap();
            assert_eq!(
                (identity.to_string().as_str(), &identity.groups[..]),
                ("basic:ann", &["developers".to_owned()][..])
            );
        }
        for wrong in ["ann:other", "ben:se:cret", "eve:se:cret", "ann", ":", ""] {
            let error = passwords.verify(&STANDARD.encode(wrong), None).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unauthenticated, "{wrong}");
        }
        assert_eq!(passwords.verify("%%%", None).await.unwrap_err().kind(), Kind::Unauthenticated);
    }

    #[tokio::test]
    async fn an_address_that_guesses_is_told_to_wait_and_others_are_not() {
        let passwords = passwords(&user("ann", "secret")).unwrap();
        let (guesser, other) = (Some(IpAddr::from([10, 0, 0, 1])), Some(IpAddr::from([10, 0, 0, 2])));
        let right = STANDARD.encode("ann:secret");
        passwords.verify(&right, other).await.unwrap();
        let mut kinds = Vec::new();
        for guess in 0..=GUESSES_MAX {
            let guess = STANDARD.encode(format!("ann:{guess}"));
            kinds.push(passwords.verify(&guess, guesser).await.unwrap_err().kind());
        }
        assert_eq!(kinds.pop(), Some(Kind::Exhausted));
        assert!(kinds.iter().all(|kind| *kind == Kind::Unauthenticated));
        let still_in = passwords.verify(&right, guesser).await;
        assert!(still_in.is_ok(), "who is known is not shut out by a guesser behind the same address");
        let guess = STANDARD.encode("ann:again");
        assert_eq!(passwords.verify(&guess, other).await.unwrap_err().kind(), Kind::Unauthenticated);
    }

    #[tokio::test]
    async fn a_guess_counts_when_nobody_waits_for_its_answer_and_a_crowd_of_right_ones_does_not() {
        let passwords = passwords(&user("ann", "secret")).unwrap();
        let right = STANDARD.encode("ann:secret");
        let crowd = (0..5 * GUESSES_MAX).map(|_| passwords.verify(&right, None));
        assert!(futures_util::future::join_all(crowd).await.iter().all(Result::is_ok));
        let guesser = Some(IpAddr::from([10, 0, 0, 1]));
        for guess in 0..GUESSES_MAX {
            let guess = STANDARD.encode(format!("ann:{guess}"));
            let mut waiting = Box::pin(passwords.verify(&guess, guesser));
            // It has its turn at once, and is dropped as with its connection, most likely before the answer is known.
            let _ = futures_util::poll!(&mut waiting);
            drop(waiting);
            while passwords.turns.available_permits() < VERIFICATIONS_MAX {
                tokio::task::yield_now().await;
            }
        }
        let late = passwords.verify(&STANDARD.encode("ann:late"), guesser).await.unwrap_err();
        assert_eq!(late.kind(), Kind::Exhausted);
    }

    #[tokio::test]
    async fn a_password_that_is_changed_in_the_file_opens_nothing_and_a_broken_file_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), user("ann", "old")).unwrap();
        let config = BasicConfig { file: file.path().to_owned(), groups: Default::default() };
        let passwords = Passwords::open(&config).unwrap();
        let opens = async |password: &str| {
            passwords.verify(&STANDARD.encode(format!("ann:{password}")), None).await.is_ok()
        };
        assert!(opens("old").await && opens("old").await);
        std::fs::write(file.path(), "ann:secret\n").unwrap();
        passwords.users.look(Look::Asked);
        assert!(opens("old").await, "the former users stay");
        std::fs::write(file.path(), user("ann", "new")).unwrap();
        passwords.users.look(Look::Asked);
        assert!(opens("new").await && !opens("old").await);
    }

    #[test]
    fn a_file_that_is_not_of_bcrypt_is_refused_with_the_line() {
        for text in ["ann\n", ":x\n", "ann:{SHA}abc\n", "ann:$apr1$abc$def\n"] {
            let error = passwords(&format!("{}{text}", user("ben", "b"))).unwrap_err();
            assert!(error.kind() == Kind::Invalid && error.chain().contains("line 2"), "{}", error.chain());
        }
    }
}
