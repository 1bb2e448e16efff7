//! Secrets, read where they are used, shown nowhere.

use hindcast_alerting::SendError;
use hindcast_alerting::route::SecretRef;
use std::fmt;

/// Of a secret file.
const SECRET_BYTES_MAX: usize = 16 * 1024;

pub struct Secret(String);

impl Secret {
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Reads a secret. One that is not there may be put there while the delivery is tried again.
pub async fn read(secret: &SecretRef) -> Result<Secret, SendError> {
    let text = match secret {
        SecretRef::File(path) => {
            let bytes = tokio::fs::read(path).await;
            let bytes = bytes.map_err(|e| SendError::Busy(format!("the secret file {path:?} cannot be read: {e}")))?;
            if bytes.len() > SECRET_BYTES_MAX {
                let why = format!("the secret file {path:?} has more than {SECRET_BYTES_MAX} bytes");
                return Err(SendError::Rejected(why));
            }
            String::from_utf8(bytes).map_err(|_| SendError::Rejected(format!("the secret file {path:?} is no text")))?
        }
        SecretRef::Env(name) => {
            std::env::var(name).map_err(|_| SendError::Busy(format!("the environment variable {name} is not set")))?
        }
    };
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() {
        return Err(SendError::Busy("the secret is empty".to_owned()));
    }
    Ok(Secret(text.to_owned()))
}
