//! What a registry wants to be told before it answers: the header `WWW-Authenticate` (RFC 9110 section 11.6.1; distribution
//! specification, "Token authentication").

/// How to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With user and password.
    Basic,
    /// With a token, which is to be had elsewhere.
    Bearer {
        /// Where.
        realm: String,
        /// For whom.
        service: Option<String>,
        /// For what.
        scope: Option<String>,
    },
}

impl Challenge {
    /// Reads the header; `None` for a scheme that is not known. A token is preferred where both will do.
    pub(super) fn read<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        let all: Vec<Challenge> = headers.filter_map(Challenge::one).collect();
        all.iter().find(|one| **one != Challenge::Basic).or(all.first()).cloned()
    }

    fn one(header: &str) -> Option<Challenge> {
        let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Challenge::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (None, None, None);
        for (name, value) in parameters(rest) {
            match name.to_ascii_lowercase().as_str() {
                "realm" => realm = Some(value),
                "service" => service = Some(value),
                "scope" => scope = Some(value),
                _ => {}
            }
        }
        Some(Challenge::Bearer { realm: realm?, service, scope })
    }
}

/// `name=value, name="quoted value", …`; ends at the first thing that is none.
fn parameters(mut text: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        let Some((name, rest)) = text.split_once('=') else { return found };
        let mut value = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut chars = quoted.char_indices();
            let end = loop {
                match chars.next() {
                    Some((at, '"')) => break at + 1,
                    Some((_, '\\')) => value.extend(chars.next().map(|(_, char)| char)),
                    Some((_, char)) => value.push(char),
                    None => return found,
                }
            };
            text = &quoted[end..];
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            value.push_str(rest[..end].trim());
            text = &rest[end..];
        }
        found.push((name.trim(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_challenge_is_read_with_commas_in_its_scope() {
        let header =
            r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: Some("registry.example".to_owned()),
            scope: Some("repository:a/b:pull,push".to_owned()),
        };
        assert_eq!(Challenge::read([r#"Basic realm="x""#, header].into_iter()), Some(expected));
    }

    #[test]
    fn what_cannot_be_answered_is_no_challenge() {
        assert_eq!(Challenge::read(["Basic"].into_iter()), Some(Challenge::Basic));
        for header in ["", "Negotiate", "Bearer", "Bearer service=x", "Bearer realm=\"x", "Bearer realm"] {
            assert_eq!(Challenge::read([header].into_iter()), None, "{header}");
        }
    }
}
