//! The web UI, built and embedded: a table of files, found by path. Serving them is the server's.
//!
//! Names under `/assets/` carry a hash of their content and never change; everything else is to be asked for again
//! with its ETag. A path that is not here and not under `/assets/` or `/api/` is a page of the app: `index.html`.

/// One file, as it is and gzip-compressed.
#[derive(Debug)]
pub struct Asset {
    /// With a leading slash.
    pub path: &'static str,
    pub raw: &'static [u8],
    pub gzip: &'static [u8],
    pub content_type: &'static str,
    /// May be cached for good.
    pub immutable: bool,
    /// Quoted, as the header wants it.
    pub etag: &'static str,
}

/// What the server sends with every file: no script or style of another origin, no frame around the app.
pub const CONTENT_SECURITY_POLICY: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'";

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

/// The file at a path; `/` is `/index.html`.
pub fn find(path: &str) -> Option<&'static Asset> {
    let path = if path == "/" { "/index.html" } else { path };
    let at = ASSETS.binary_search_by(|a| a.path.cmp(path)).ok()?;
    Some(&ASSETS[at])
}

/// Whether the UI itself is here, not the page that says that it is missing.
pub fn is_built() -> bool {
    BUILT
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn every_file_is_found_and_unpacks_to_itself() {
        for asset in ASSETS {
            assert_eq!(find(asset.path).unwrap().etag, asset.etag);
            assert_eq!(asset.immutable, asset.path.starts_with("/assets/"));
            let mut unpacked = Vec::new();
            flate2::read::GzDecoder::new(asset.gzip)
                .read_to_end(&mut unpacked)
                .unwrap();
            assert_eq!(unpacked, asset.raw, "{}", asset.path);
        }
        assert_eq!(find("/").unwrap().path, "/index.html");
        assert!(find("/incidents/INC-1").is_none() && find("/../Cargo.toml").is_none());
    }

    #[test]
    fn the_page_asks_for_nothing_that_is_not_here() {
        let page = std::str::from_utf8(find("/").unwrap().raw).unwrap();
        assert!(
            !page.contains("http://") && !page.contains("https://"),
            "another origin is named"
        );
        if !is_built() {
            return;
        }
        assert!(
            !page.contains("<script>") && !page.contains("style="),
            "inline code needs a weaker policy"
        );
        let named = page
            .split('"')
            .filter(|p| p.starts_with('/') && !p.contains('<') && p.len() > 1);
        let named: Vec<_> = named.collect();
        assert!(named.len() >= 3, "{named:?}");
        for path in named {
            assert!(find(path).is_some(), "{path}");
        }
    }

    #[test]
    fn the_first_load_stays_within_its_budget() {
        let packed = |ending: &str| -> usize {
            ASSETS
                .iter()
                .filter(|a| a.path.ends_with(ending))
                .map(|a| a.gzip.len())
                .sum()
        };
        assert!(packed(".js") <= 60 * 1024, "{} bytes of script", packed(".js"));
        assert!(packed(".css") <= 12 * 1024, "{} bytes of style", packed(".css"));
    }
}
