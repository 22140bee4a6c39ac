//! Which sandbox a person means, whoever its client is: for what is done to a machine rather than to one of its containers.

use super::super::Error;
use crate::sandbox::folder::{self, Found, Places};

/// The living sandbox that somebody calls so, or whose id begins so if no other's does.
///
/// # Errors
/// When there is none, or more than one.
pub(super) fn find(places: &Places, word: &str) -> Result<Found, Error> {
    let all = folder::all(places).map_err(|error| Error::State(error.to_string()))?;
    let mut fitting: Vec<(Found, Vec<String>)> = Vec::new();
    for found in all.into_iter().filter(Found::lives) {
        let ids: Vec<String> =
            [found.id().to_owned()].into_iter().chain(found.client().map(|client| client.id)).collect();
        if ids.iter().any(|id| id == word) || found.name() == Some(word) {
            return Ok(found);
        }
        if !word.is_empty() && ids.iter().any(|id| id.starts_with(word)) {
            fitting.push((found, ids));
        }
    }
    match fitting.len() {
        0 => Err(Error::State(format!("no sandbox {word} runs here"))),
        1 => Ok(fitting.remove(0).0),
        _ => {
            let ids: Vec<String> = fitting.into_iter().filter_map(|(_, mut ids)| ids.pop()).collect();
            Err(Error::State(format!("{word} could be several sandboxes: {}", ids.join(", "))))
        }
    }
}
