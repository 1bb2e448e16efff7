//! SCRAM (RFC 5802, 7677) and PLAIN (RFC 4616): how this program proves to a broker that it knows a password, and with SCRAM the broker
//! that it does, too.
//!
//! Pure: the broker's words and a nonce in, ours out. Names and passwords are taken as they are written (no SASLprep): brokers do the same
//! with those that are ASCII.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha512};

/// Rounds that a broker may ask for. Each takes about a microsecond, and brokers ask for 4,096 or 8,192.
pub const ITERATIONS_MAX: u32 = 1_000_000;
const ITERATIONS_MIN: u32 = 4096;

/// How a password is proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mechanism {
    Plain,
    Sha256,
    Sha512,
}

impl Mechanism {
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(match text.to_ascii_uppercase().as_str() {
            "PLAIN" => Self::Plain,
            "SCRAM-SHA-256" => Self::Sha256,
            "SCRAM-SHA-512" => Self::Sha512,
            _ => {
                return Err(format!(
                    "mechanism {text:?} is not supported; write PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"
                ));
            }
        })
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Sha256 => "SCRAM-SHA-256",
            Self::Sha512 => "SCRAM-SHA-512",
        }
    }

    fn hash(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha512 => Sha512::digest(data).to_vec(),
            _ => Sha256::digest(data).to_vec(),
        }
    }

    fn hmac(self, key: &[u8], data: &[&[u8]]) -> Vec<u8> {
        macro_rules! mac {
            ($hash:ty) => {{
                let mut mac = Hmac::<$hash>::new_from_slice(key).expect("a key of any length will do");
                data.iter().for_each(|d| mac.update(d));
                mac.finalize().into_bytes().to_vec()
            }};
        }
        match self {
            Self::Sha512 => mac!(Sha512),
            _ => mac!(Sha256),
        }
    }
}

/// What PLAIN sends.
pub fn plain(user: &str, password: &str) -> Vec<u8> {
    format!("\0{user}\0{password}").into_bytes()
}

/// Why a broker is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("the broker's answer is not one of SCRAM")]
    Malformed,
    #[error("the broker refuses: {0}")]
    Refused(String),
    #[error("the broker asks for {0} rounds; {ITERATIONS_MIN} to {ITERATIONS_MAX} are done")]
    Rounds(u32),
    #[error("the broker does not know the password itself: somebody else answers at its address")]
    Impostor,
}

/// One conversation.
pub struct Scram {
    mechanism: Mechanism,
    password: String,
    /// The nonce is in it.
    first_bare: String,
    nonce: String,
    expected: Vec<u8>,
}

fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.split(',').find_map(|f| f.strip_prefix(name)?.strip_prefix('='))
}

impl Scram {
    /// `nonce`: printable, without a comma, never used before.
    pub fn new(mechanism: Mechanism, user: &str, password: &str, nonce: &str) -> Self {
        let user = user.replace('=', "=3D").replace(',', "=2C");
        Self {
            mechanism,
            password: password.to_owned(),
            first_bare: format!("n={user},r={nonce}"),
            nonce: nonce.to_owned(),
            expected: vec![],
        }
    }

    pub fn first(&self) -> Vec<u8> {
        format!("n,,{}", self.first_bare).into_bytes()
    }

    /// What follows the broker's first answer.
    pub fn last(&mut self, answer: &[u8]) -> Result<Vec<u8>, ScramError> {
        let text = std::str::from_utf8(answer).map_err(|_| ScramError::Malformed)?;
        if let Some(why) = field(text, "e") {
            return Err(ScramError::Refused(why.chars().take(100).collect()));
        }
        let read = || Some((field(text, "r")?, field(text, "s")?, field(text, "i")?.parse().ok()?));
        let (nonce, salt, rounds): (&str, &str, u32) = read().ok_or(ScramError::Malformed)?;
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(ScramError::Malformed);
        }
        let salt = STANDARD.decode(salt).map_err(|_| ScramError::Malformed)?;
        if !(ITERATIONS_MIN..=ITERATIONS_MAX).contains(&rounds) {
            return Err(ScramError::Rounds(rounds));
        }
        let m = self.mechanism;
        let mut round = m.hmac(self.password.as_bytes(), &[&salt, &1u32.to_be_bytes()]);
        let mut salted = round.clone();
        for _ in 1..rounds {
            round = m.hmac(self.password.as_bytes(), &[&round]);
            salted.iter_mut().zip(&round).for_each(|(s, r)| *s ^= r);
        }
        let client_key = m.hmac(&salted, &[b"Client Key"]);
        let without_proof = format!("c=biws,r={nonce}");
        let said = format!("{},{text},{without_proof}", self.first_bare);
        let signature = m.hmac(&m.hash(&client_key), &[said.as_bytes()]);
        let proof: Vec<u8> = client_key.iter().zip(&signature).map(|(k, s)| k ^ s).collect();
        let server_key = m.hmac(&salted, &[b"Server Key"]);
        self.expected = m.hmac(&server_key, &[said.as_bytes()]);
        Ok(format!("{without_proof},p={}", STANDARD.encode(proof)).into_bytes())
    }

    /// Whether the broker knows the password, too.
    pub fn verify(&self, answer: &[u8]) -> Result<(), ScramError> {
        let text = std::str::from_utf8(answer).map_err(|_| ScramError::Malformed)?;
        if let Some(why) = field(text, "e") {
            return Err(ScramError::Refused(why.chars().take(100).collect()));
        }
        let signature = field(text, "v").and_then(|v| STANDARD.decode(v).ok());
        match signature {
            Some(signature) if !self.expected.is_empty() && signature == self.expected => Ok(()),
            Some(_) => Err(ScramError::Impostor),
            None => Err(ScramError::Malformed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    #[test]
    fn the_conversation_of_the_standard_is_spoken_word_by_word() {
        let mut scram = Scram::new(Mechanism::Sha256, "user", "pencil", "rOprNGfwEbeRWgbNEkqO");
        assert_eq!(scram.first(), b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO");
        let last =
            scram.last(b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096");
        assert_eq!(
            String::from_utf8(last.unwrap()).unwrap(),
            "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
        );
        assert_eq!(scram.verify(b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="), Ok(()));
        assert_eq!(
            scram.verify(b"v=7rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="),
            Err(ScramError::Impostor)
        );
        assert_eq!(
            scram.verify(b"e=invalid-proof"),
            Err(ScramError::Refused("invalid-proof".to_owned()))
        );
    }

    /// The same with the longer hash; proof and signature are what Python's hashlib makes of it.
    #[test]
    fn with_the_longer_hash_it_is_as_another_implementation_has_it() {
        let mut scram = Scram::new(Mechanism::Sha512, "user", "pencil", "rOprNGfwEbeRWgbNEkqO");
        let last =
            scram.last(b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=8192");
        let proof = "6HZ5rUA3PgkE/X3DbWzXrokJFsM9zr9o7EgisWdnKczXrIzjgD4BKpBTn7XAOVwLeZUg1pFRTcesJnSwFTQsIw==";
        let said = String::from_utf8(last.unwrap()).unwrap();
        assert_eq!(
            said.split_once(",p="),
            Some(("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0", proof))
        );
        let signature = "RqO11yK/xS8vUqXJmCYvXcKjTIkTicWzQEDh94upkSMgEZfW9mqg9ws9DPT5rQ74uE1weAEpGS1Y6Q6l6KVKXw==";
        assert_eq!(scram.verify(format!("v={signature}").as_bytes()), Ok(()));
    }

    #[test]
    fn a_broker_that_asks_for_too_much_or_repeats_only_our_nonce_is_refused() {
        let mut scram = Scram::new(Mechanism::Sha512, "a,b=c", "p", "abc");
        assert_eq!(scram.first(), b"n,,n=a=2Cb=3Dc,r=abc");
        assert_eq!(
            scram.last(b"r=abcd,s=AAAA,i=1000001"),
            Err(ScramError::Rounds(1_000_001))
        );
        assert_eq!(scram.last(b"r=abcd,s=AAAA,i=1"), Err(ScramError::Rounds(1)));
        for bad in [
            &b"r=abc,s=AAAA,i=4096"[..],
            b"r=xyz,s=AAAA,i=4096",
            b"r=abcd,i=4096",
            b"\xff",
        ] {
            assert_eq!(scram.last(bad), Err(ScramError::Malformed));
        }
        assert_eq!(scram.verify(b"v="), Err(ScramError::Impostor), "nothing was proved yet");
        assert_eq!(plain("u", "p"), b"\0u\0p");
    }
}
