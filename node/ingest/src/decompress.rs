//! Bodies as they were before compression, never larger than `REQUEST_DECODED_BYTES_MAX`.
//!
//! Sizes are taken from headers where the format has one, and counted while decompressing in any case.

use crate::AdaptError;
use bytes::Bytes;
use hindcast_model::limits::{REQUEST_DECODED_BYTES_MAX, REQUEST_WIRE_BYTES_MAX};
use std::io::Read;

/// How a body is compressed on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Identity,
    Gzip,
    Zstd,
    /// One snappy block, as Prometheus and Loki send it; not the framed form.
    Snappy,
}

impl Encoding {
    /// From a `Content-Encoding` header; `None` when it is not one of ours.
    pub fn parse(header: &str) -> Option<Self> {
        match header.trim().to_ascii_lowercase().as_str() {
            "" | "identity" => Some(Self::Identity),
            "gzip" | "x-gzip" => Some(Self::Gzip),
            "zstd" => Some(Self::Zstd),
            "snappy" => Some(Self::Snappy),
            _ => None,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Snappy => "snappy",
        }
    }
}

/// The decompressed body.
pub fn decompress(encoding: Encoding, body: &Bytes) -> Result<Bytes, AdaptError> {
    if body.len() > REQUEST_WIRE_BYTES_MAX {
        return Err(AdaptError::WireTooLarge {
            bytes_max: REQUEST_WIRE_BYTES_MAX,
        });
    }
    let failed = |why: String| AdaptError::Compression {
        encoding: encoding.as_str(),
        why,
    };
    match encoding {
        Encoding::Identity => Ok(body.clone()),
        Encoding::Gzip => counted(flate2::read::MultiGzDecoder::new(&body[..]), failed),
        Encoding::Zstd => counted(
            zstd::Decoder::with_buffer(&body[..]).map_err(|e| failed(e.to_string()))?,
            failed,
        ),
        Encoding::Snappy => {
            let len = snap::raw::decompress_len(body).map_err(|e| failed(e.to_string()))?;
            if len > REQUEST_DECODED_BYTES_MAX {
                return Err(too_large());
            }
            let decoded = snap::raw::Decoder::new().decompress_vec(body);
            decoded.map(Bytes::from).map_err(|e| failed(e.to_string()))
        }
    }
}

/// A snappy block into `scratch`, which keeps its room for the next one.
pub fn snappy_into<'s>(body: &[u8], scratch: &'s mut Vec<u8>) -> Result<&'s [u8], AdaptError> {
    if body.len() > REQUEST_WIRE_BYTES_MAX {
        return Err(AdaptError::WireTooLarge {
            bytes_max: REQUEST_WIRE_BYTES_MAX,
        });
    }
    let failed = |e: snap::Error| AdaptError::Compression {
        encoding: Encoding::Snappy.as_str(),
        why: e.to_string(),
    };
    let len = snap::raw::decompress_len(body).map_err(failed)?;
    if len > REQUEST_DECODED_BYTES_MAX {
        return Err(too_large());
    }
    if scratch.len() < len {
        scratch.resize(len, 0);
    }
    let decoded = snap::raw::Decoder::new().decompress(body, &mut scratch[..len]);
    let len = decoded.map_err(failed)?;
    Ok(&scratch[..len])
}

/// Reads to the end, or to one byte more than is allowed.
fn counted(reader: impl Read, failed: impl FnOnce(String) -> AdaptError) -> Result<Bytes, AdaptError> {
    let mut decoded = Vec::new();
    let read = reader
        .take(REQUEST_DECODED_BYTES_MAX as u64 + 1)
        .read_to_end(&mut decoded);
    read.map_err(|e| failed(e.to_string()))?;
    if decoded.len() > REQUEST_DECODED_BYTES_MAX {
        return Err(too_large());
    }
    Ok(decoded.into())
}

fn too_large() -> AdaptError {
    AdaptError::DecodedTooLarge {
        bytes_max: REQUEST_DECODED_BYTES_MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use std::io::Write;

    fn compress(encoding: Encoding, body: &[u8]) -> Bytes {
        match encoding {
            Encoding::Identity => Bytes::copy_from_slice(body),
            Encoding::Gzip => {
                let mut gz = GzEncoder::new(vec![], Compression::fast());
                gz.write_all(body).unwrap();
                gz.finish().unwrap().into()
            }
            Encoding::Zstd => zstd::encode_all(body, 1).unwrap().into(),
            Encoding::Snappy => snap::raw::Encoder::new().compress_vec(body).unwrap().into(),
        }
    }

    const ALL: [Encoding; 4] = [Encoding::Identity, Encoding::Gzip, Encoding::Zstd, Encoding::Snappy];

    #[test]
    fn a_bomb_is_refused_by_its_decoded_size() {
        let too_much = vec![0u8; REQUEST_DECODED_BYTES_MAX + 1];
        let just_fits = &too_much[1..];
        for encoding in [Encoding::Gzip, Encoding::Zstd, Encoding::Snappy] {
            assert_eq!(
                decompress(encoding, &compress(encoding, &too_much)),
                Err(too_large()),
                "{encoding:?}"
            );
            let fits = decompress(encoding, &compress(encoding, just_fits)).unwrap();
            assert_eq!(fits.len(), REQUEST_DECODED_BYTES_MAX, "{encoding:?}");
        }
        // A snappy header that promises 4 GiB is refused before anything is allocated.
        let promise = Bytes::from_static(&[0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0]);
        assert_eq!(decompress(Encoding::Snappy, &promise), Err(too_large()));
        let wide = Bytes::from(vec![0; REQUEST_WIRE_BYTES_MAX + 1]);
        let bytes_max = REQUEST_WIRE_BYTES_MAX;
        assert_eq!(
            decompress(Encoding::Identity, &wide),
            Err(AdaptError::WireTooLarge { bytes_max })
        );
    }

    proptest! {
        #[test]
        fn a_body_comes_back_and_random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            for encoding in ALL {
                prop_assert_eq!(&decompress(encoding, &compress(encoding, &body)).unwrap()[..], &body[..]);
                let _ = decompress(encoding, &Bytes::copy_from_slice(&body));
            }
            let mut scratch = vec![7; 50];
            let packed = compress(Encoding::Snappy, &body);
            prop_assert_eq!(snappy_into(&packed, &mut scratch).unwrap(), &body[..]);
            let _ = snappy_into(&body, &mut scratch);
        }
    }
}
