//! `AUTH_FILE`: users and the bcrypt hashes of their passwords. Owns: the file's form, and whether
//! a password is a user's. Must not: show a hash or a name, not even in a fault. The only user of
//! `bcrypt`.

use std::fmt;

use base64::Engine as _;
use base64::alphabet::BCRYPT;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use ring::hmac;

use crate::secret::Secret;

/// Longest user name; no client has longer ones.
const NAME_LENGTH_MAX: usize = 255;
/// Costs that are accepted. Each step doubles the time: 14 takes one to two seconds, and two checks
/// at a time then are one login a second. bcrypt itself begins at 4.
const COST_MIN: u8 = 4;
const COST_MAX: u8 = 14;
/// bcrypt looks at no more bytes; `htpasswd`, Apache and docker-registry cut longer passwords, too.
const PASSWORD_BYTES_MAX: usize = 72;
/// `$2y$10$`, 22 characters of salt, 31 of hash.
const HASH_LENGTH: usize = 60;
/// 16 bytes do not fill 22 characters: tools differ in the spare bits of the last one.
const BASE_64: GeneralPurpose =
    GeneralPurpose::new(&BCRYPT, NO_PAD.with_decode_allow_trailing_bits(true));
/// Faults that are named; a file of another kind would have one in each line.
const FAULTS_NAMED_MAX: usize = 5;

/// The users of a file, at least one.
#[derive(Clone, PartialEq, Eq)]
pub struct Users {
    /// By name.
    entries: Vec<(String, Secret<Hash>)>,
}

/// A bcrypt hash taken apart.
#[derive(Clone, PartialEq, Eq)]
struct Hash {
    cost: u8,
    salt: [u8; 16],
    digest: [u8; 23],
}

impl Users {
    /// Reads the text of a file: `name:hash` lines. Blank lines, and those that begin with `#`,
    /// count for nothing.
    ///
    /// # Errors
    /// The numbers of the lines at fault, and what is wrong with each.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut entries = Vec::new();
        let mut faults = Vec::new();
        let lines = text.strip_prefix('\u{feff}').unwrap_or(text).lines();
        for (number, line) in (1_usize..).zip(lines) {
            let bare = line.trim_start();
            if bare.is_empty() || bare.starts_with('#') {
                continue;
            }
            match parse_line(line.trim_end()) {
                Ok((name, hash)) => entries.push((name.to_owned(), number, Secret::new(hash))),
                Err(why) => faults.push((number, why)),
            }
        }
        entries.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
        let pairs = entries.iter().zip(entries.iter().skip(1));
        for (earlier, later) in pairs.filter(|(earlier, later)| earlier.0 == later.0) {
            // Apache takes the first of them and docker-registry the last.
            faults.push((later.1, format!("the same name as line {}", earlier.1)));
        }
        if !faults.is_empty() {
            return Err(join_faults(faults));
        }
        if entries.is_empty() {
            return Err("it names no user, so that nobody could log in".to_owned());
        }
        let entries = entries.into_iter().map(|(name, _, hash)| (name, hash));
        Ok(Self {
            entries: entries.collect(),
        })
    }

    /// How many there are.
    pub const fn count(&self) -> usize {
        self.entries.len()
    }

    /// True when there is a user of this name.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// True when `password` is that of `name`. Takes as long for an unknown name: the password is
    /// then compared with the hash of some user. The secret `key` chooses the same user each time,
    /// so that the costs of unknown names vary as those of known names do.
    ///
    /// Blocks for the time that bcrypt takes, 0.1 s at the usual cost.
    pub fn check(&self, name: &str, password: &[u8], key: &hmac::Key) -> bool {
        let known = self.find(name);
        let Some(hash) = known.or_else(|| self.pick_decoy(name, key)) else {
            return false;
        };
        hash.matches(password, key) && known.is_some()
    }

    fn find(&self, name: &str) -> Option<&Hash> {
        let found = self
            .entries
            .binary_search_by(|(other, _)| other.as_str().cmp(name));
        let (_, hash) = self.entries.get(found.ok()?)?;
        Some(hash.expose())
    }

    fn pick_decoy(&self, name: &str, key: &hmac::Key) -> Option<&Hash> {
        let mac = hmac::sign(key, name.as_bytes());
        let number = mac.as_ref().iter().take(4);
        let number = number.fold(0_usize, |number, byte| (number << 8) | usize::from(*byte));
        let (_, hash) = self.entries.get(number.checked_rem(self.entries.len())?)?;
        Some(hash.expose())
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} users", self.count())
    }
}

impl Hash {
    fn matches(&self, password: &[u8], key: &hmac::Key) -> bool {
        let used = password.get(..PASSWORD_BYTES_MAX).unwrap_or(password);
        let mut bytes = used.to_vec();
        if bytes.len() < PASSWORD_BYTES_MAX {
            // bcrypt takes a C string, its end included.
            bytes.push(0);
        }
        let found = bcrypt::bcrypt(u32::from(self.cost), self.salt, &bytes);
        let found = found.get(..self.digest.len()).unwrap_or_default();
        // The time of the comparison shows where the two MACs differ, which tells nothing about the
        // hashes.
        hmac::verify(key, found, hmac::sign(key, &self.digest).as_ref()).is_ok()
    }
}

/// The first faults, by their lines.
fn join_faults(mut faults: Vec<(usize, String)>) -> String {
    faults.sort();
    let named = faults.iter().take(FAULTS_NAMED_MAX);
    let mut words: Vec<String> = named
        .map(|(number, why)| format!("line {number}: {why}"))
        .collect();
    if faults.len() > words.len() {
        words.push(format!("and {} more", faults.len() - words.len()));
    }
    words.join("; ")
}

/// One line. The error shows nothing of it: what looks like a name may be a password.
fn parse_line(line: &str) -> Result<(&str, Hash), String> {
    let (name, hash) = line
        .split_once(':')
        .ok_or("expected name:hash, as htpasswd -B writes it")?;
    if name.trim() != name {
        // With blanks, the name would look like another one.
        return Err("expected a name without blanks at its ends; remove them".to_owned());
    }
    if name.is_empty() || name.len() > NAME_LENGTH_MAX || name.contains(char::is_control) {
        return Err(format!(
            "expected a name of 1 to {NAME_LENGTH_MAX} bytes before the colon"
        ));
    }
    Ok((name, parse_hash(hash)?))
}

fn parse_hash(text: &str) -> Result<Hash, String> {
    let Some((version, rest)) = bcrypt_version(text) else {
        let kind = name_hash_kind(text);
        return Err(format!(
            "{kind} is not accepted, expected a bcrypt hash ($2y$, $2a$ or $2b$); make it with \
             htpasswd -B"
        ));
    };
    let broken = || format!("a {version} hash that is not whole; make it anew with htpasswd -B");
    if text.len() != HASH_LENGTH || !text.is_ascii() {
        return Err(broken());
    }
    let (cost, rest) = rest.split_once('$').ok_or_else(broken)?;
    let digits = cost.len() == 2 && cost.bytes().all(|b| b.is_ascii_digit());
    let cost: u8 = cost.parse().ok().filter(|_| digits).ok_or_else(broken)?;
    if !(COST_MIN..=COST_MAX).contains(&cost) {
        return Err(format!(
            "a bcrypt hash of cost {cost}, expected {COST_MIN} to {COST_MAX}, since every login \
             has to wait for it; make it anew with htpasswd -B -C 10"
        ));
    }
    let (salt, digest) = rest.split_at_checked(22).ok_or_else(broken)?;
    let mut hash = Hash {
        cost,
        salt: [0; 16],
        digest: [0; 23],
    };
    let whole = BASE_64.decode_slice(salt, &mut hash.salt) == Ok(hash.salt.len())
        && BASE_64.decode_slice(digest, &mut hash.digest) == Ok(hash.digest.len());
    if whole { Ok(hash) } else { Err(broken()) }
}

/// `$2x$` is not among them: it marks hashes that were made by a broken bcrypt.
fn bcrypt_version(text: &str) -> Option<(&'static str, &str)> {
    let versions = ["$2y$", "$2a$", "$2b$"];
    let mut found = versions
        .into_iter()
        .filter_map(|version| Some((version, text.strip_prefix(version)?)));
    found.next()
}

/// The kind of another hash, as `htpasswd` and crypt(5) mark it.
fn name_hash_kind(text: &str) -> &'static str {
    let kinds = [
        ("$apr1$", "MD5 (apr1)"),
        ("$1$", "MD5"),
        ("$2x$", "bcrypt of a broken version ($2x$)"),
        ("$5$", "SHA-256"),
        ("$6$", "SHA-512"),
        ("{SHA}", "SHA-1"),
    ];
    let kind = kinds.into_iter().find(|(mark, _)| text.starts_with(mark));
    kind.map_or("what stands there", |(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made by `htpasswd -nbB -C 4`.
    const ALICE: &str = "alice:$2y$04$tJBiJ7GRyAeQAAUt4r3xBO4PxvUfKr.f4..LKnYDQkK971koJHPLG";
    const BOB: &str = "bob:$2y$04$ls2ZlFzd1.XVO084NzckyeHSB6wWJWCl9jWoYpYbyco47P85ZBtRm";
    /// The hash of 80 times `x`.
    const LONG: &str = "long:$2y$04$PbrERumOl8cwmsOIoxet7uNyYqX4LXiAaBV2s9xd9vgw7yMYHyeXq";

    fn key() -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, b"a key")
    }

    fn fault(text: &str) -> String {
        Users::parse(text).unwrap_err()
    }

    #[test]
    fn a_file_as_htpasswd_writes_it() {
        let text = format!(
            "\u{feff}# people\r\n{ALICE}\r\n\r\n{BOB}  \n  # {LONG}\n#{LONG}\nsp ace:{}\n",
            &BOB[4..]
        );
        let users = Users::parse(&text).unwrap();
        assert_eq!(users.count(), 3);
        assert!(users.has("alice") && users.has("sp ace") && !users.has("#long"));
        assert!(users.check("alice", b"open sesame", &key()));
        assert!(users.check("bob", "pässwörd".as_bytes(), &key()));
        assert!(!users.check("alice", "pässwörd".as_bytes(), &key()));
        assert!(!users.check("bob", b"", &key()));
    }

    #[test]
    fn an_unknown_name_has_no_password_not_even_a_known_one() {
        let users = Users::parse(ALICE).unwrap();
        for name in ["eve", "", "alic", "alice2", "ALICE"] {
            assert!(
                users.pick_decoy(name, &key()).is_some(),
                "{name}: a check is made"
            );
            assert!(!users.check(name, b"open sesame", &key()), "{name}");
        }
        let users = Users::parse(&format!("{ALICE}\n{BOB}")).unwrap();
        let of = |name: &str| users.pick_decoy(name, &key()).unwrap().salt;
        assert_eq!(of("eve"), of("eve"));
        let names: Vec<String> = (0..64).map(|number| format!("user{number}")).collect();
        let alices = names.iter().filter(|name| of(name) == of("eve")).count();
        assert!((1..64).contains(&alices), "spread over both: {alices}");
    }

    #[test]
    fn the_three_versions_are_one() {
        for version in ["$2y$", "$2a$", "$2b$"] {
            let users = Users::parse(&ALICE.replace("$2y$", version)).unwrap();
            assert!(users.check("alice", b"open sesame", &key()), "{version}");
        }
    }

    #[test]
    fn vectors_of_jbcrypt() {
        for (password, hash) in [
            (
                "",
                "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s.",
            ),
            (
                "a",
                "$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe",
            ),
            // The same with other bits behind the salt.
            (
                "a",
                "$2a$06$m0CrhHm10qJ3lXRY.5zDGP3rS2KdeeWLuGmsfGlMfOxih58VYVfxe",
            ),
        ] {
            let users = Users::parse(&format!("u:{hash}")).unwrap();
            assert!(users.check("u", password.as_bytes(), &key()), "{hash}");
            assert!(!users.check("u", b"b", &key()));
        }
    }

    #[test]
    fn a_password_is_cut_where_htpasswd_cuts_it() {
        let users = Users::parse(LONG).unwrap();
        let check = |length| users.check("long", "x".repeat(length).as_bytes(), &key());
        assert!(check(80) && check(72) && check(1000));
        assert!(!check(71));
    }

    #[test]
    fn other_hashes_are_refused_by_line_and_kind() {
        for (hash, kind) in [
            ("$apr1$tCSHMuh2$dqHwCH9FMJ8Vgr2zJDt5o0", "MD5 (apr1)"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA-1"),
            ("$5$salt$hash", "SHA-256"),
            ("$6$salt$hash", "SHA-512"),
            ("$1$salt$hash", "MD5"),
            ("rqXexS6ZhobKA", "what stands there"),
            ("hunter2", "what stands there"),
            ("", "what stands there"),
        ] {
            let why = fault(&format!("{ALICE}\n\nbob:{hash}\n"));
            assert!(why.starts_with(&format!("line 3: {kind} is not")), "{why}");
            assert!(why.contains("htpasswd -B"), "{why}");
        }
        let (_, hash) = ALICE.split_once(':').unwrap();
        let why = fault(&format!("a:{}", hash.replace("$2y$", "$2x$")));
        assert!(why.contains("$2x$") && why.contains("broken"), "{why}");
    }

    #[test]
    fn broken_lines_are_named_and_not_shown() {
        let (_, hash) = ALICE.split_once(':').unwrap();
        let cost = |cost: &str| hash.replace("$04$", cost);
        for (line, why) in [
            (hash.to_owned(), "expected name:hash"),
            ("hunter2".to_owned(), "expected name:hash"),
            (format!(":{hash}"), "expected a name"),
            (format!("{}:{hash}", "n".repeat(256)), "expected a name"),
            (format!("a\u{1}b:{hash}"), "expected a name"),
            (format!("a:{}", &hash[..59]), "not whole"),
            (format!("a:{hash}x"), "not whole"),
            (format!("a:{hash}:more"), "not whole"),
            (format!("a:{}é", &hash[..58]), "not whole"),
            (
                format!("a:{}", hash.replace('/', "!").replacen('.', "!", 9)),
                "not whole",
            ),
            (format!("a:{}", cost("$4$0")), "not whole"),
            (format!("a:{}", cost("$+4$")), "not whole"),
            (format!("a:{}", cost("$03$")), "cost 3, expected 4 to 14"),
            (format!("a:{}", cost("$15$")), "cost 15, expected 4 to 14"),
            (format!("a:{}", cost("$31$")), "cost 31"),
        ] {
            let words = fault(&line);
            assert!(
                words.starts_with("line 1: ") && words.contains(why),
                "{line}: {words}"
            );
            for secret in [&hash[7..40], "hunter2"] {
                assert!(!words.contains(secret), "{words}");
            }
        }
        assert!(Users::parse(&format!("{}:{hash}", "n".repeat(255))).is_ok());
        assert!(Users::parse(&format!("a:{}", cost("$14$"))).is_ok());
    }

    #[test]
    fn bug_a_name_could_have_blanks_at_its_ends() {
        let (_, hash) = BOB.split_once(':').unwrap();
        for name in [" bob", "bob ", "\tbob", "bob\u{a0}", " ", "\u{3000} "] {
            assert_eq!(
                fault(&format!("{ALICE}\n{name}:{hash}\n")),
                "line 2: expected a name without blanks at its ends; remove them",
                "{name:?}"
            );
        }
        // Within a name they are a part of it.
        assert!(Users::parse(&format!("b o b:{hash}")).unwrap().has("b o b"));
    }

    #[test]
    fn all_faults_are_told_but_not_without_end() {
        let words = fault(&format!("a:x\n{ALICE}\nb:y\n"));
        assert!(
            words.contains("line 1: ") && words.contains("; line 3: "),
            "{words}"
        );
        let words = fault(&"a:x\n".repeat(1000));
        assert!(
            words.contains("line 5: ") && !words.contains("line 6: "),
            "{words}"
        );
        assert!(words.ends_with("; and 995 more"), "{words}");
    }

    #[test]
    fn a_name_given_twice_is_a_fault() {
        let words = fault(&format!("{ALICE}\n{BOB}\n{ALICE}\n"));
        assert_eq!(words, "line 3: the same name as line 1");
    }

    #[test]
    fn a_file_without_users_is_a_fault() {
        for text in ["", "\n\n", "# nobody\n"] {
            assert!(fault(text).contains("names no user"), "{text:?}");
        }
    }

    #[test]
    fn nothing_is_shown_of_users() {
        let shown = format!("{:?}", Users::parse(ALICE).unwrap());
        assert_eq!(shown, "1 users");
    }
}
