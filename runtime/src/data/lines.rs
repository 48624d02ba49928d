//! Text files that people write.

use std::fs;
use std::path::Path;

use super::DataError;

/// A file of UTF-8 text, with or without a byte order mark.
pub(super) fn read_text(path: &Path, advice: &str) -> Result<String, DataError> {
    let bytes = fs::read(path).map_err(|error| DataError::file(path, error, advice))?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    if text.starts_with(&[0xff, 0xfe]) || text.starts_with(&[0xfe, 0xff]) {
        return Err(DataError::file(path, "UTF-16 text", "save it as UTF-8"));
    }
    String::from_utf8(text.to_vec()).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        let (before, byte) = (&text[..at], text[at]);
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        let reason = format!(
            "byte {byte:#04x} at column {column} is not UTF-8; is the file Latin-1 or Windows-1252? Convert it: \
             `iconv -f windows-1252 -t utf-8 OLD > NEW`"
        );
        DataError::Line {
            path: path.to_path_buf(),
            line: before.iter().filter(|&&byte| byte == b'\n').count() + 1,
            reason,
        }
    })
}
