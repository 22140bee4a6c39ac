//! What a client says of the runtime itself: `runtimeoptions.v1.Options`, as `ctr --runtime-config-path` and the CRI plug-in's
//! `ConfigPath` send them.
//!
//! Reads the name of a configuration file out of them, and nothing else.

use std::path::PathBuf;

use containerd_shim_protos::bootstrap_api::BootstrapParams;
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use super::bootstrap::Form;
use super::message::fields;

/// How the message's type is called, whatever stands before it.
const TYPE: &str = "runtimeoptions.v1.Options";
/// The message's `config_path`.
const CONFIG_PATH: u32 = 2;

/// Options that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the runtime's options (runtimeoptions.v1.Options) are malformed: {0}")]
pub(super) struct OptionsError(String);

/// The configuration file that the standard input of `start` names, which shows that its caller speaks as in `form`.
///
/// # Errors
/// [`OptionsError`].
pub(super) fn config_path(input: &[u8], form: &Form) -> Result<Option<PathBuf>, OptionsError> {
    match form {
        Form::Message(params) => {
            let BootstrapParams { extensions, .. } = params.as_ref();
            let values = extensions.iter().filter_map(|extension| extension.value.as_ref());
            values.map(named_in).find(|named| !matches!(named, Ok(None))).unwrap_or(Ok(None))
        }
        // Whatever else comes is nobody's options.
        Form::Plain | Form::Json => Any::parse_from_bytes(input).map_or(Ok(None), |options| named_in(&options)),
    }
}

fn named_in(options: &Any) -> Result<Option<PathBuf>, OptionsError> {
    if !options.type_url.ends_with(TYPE) {
        return Ok(None);
    }
    let path = text_field(&options.value, CONFIG_PATH).map_err(|error| OptionsError(error.to_string()))?;
    Ok(path.filter(|path| !path.is_empty()).map(PathBuf::from))
}

/// The last value of a field of text.
fn text_field(message: &[u8], number: u32) -> protobuf::Result<Option<String>> {
    let mut found = None;
    fields(message, |field, value| {
        if field == number {
            found = Some(String::from_utf8(value.to_vec()).map_err(std::io::Error::other)?);
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.to_owned(), value: value.to_vec(), ..Default::default() }
    }

    /// A type of one letter, the path /c, a body.
    const OPTIONS: &[u8] = b"\x0a\x01t\x12\x02/c\x1a\x01b";

    #[test]
    fn a_configuration_file_is_found_however_it_is_sent() {
        let found = |options: &Any| config_path(&options.write_to_bytes().unwrap(), &Form::Plain);
        assert_eq!(found(&any("runtimeoptions.v1.Options", OPTIONS)), Ok(Some("/c".into())));
        assert_eq!(found(&any("type.googleapis.com/runtimeoptions.v1.Options", b"\x12\x00")), Ok(None));
        assert_eq!(found(&any("containerd.runc.v1.Options", OPTIONS)), Ok(None));
        assert_eq!(config_path(b"\xff\xff", &Form::Json), Ok(None));
        let options = any("runtimeoptions.v1.Options", OPTIONS);
        let extension = |value| Extension { value: Some(value).into(), ..Default::default() };
        let extensions = vec![extension(any("another", b"")), extension(options)];
        let params = BootstrapParams { extensions, ..Default::default() };
        assert_eq!(config_path(&[], &Form::Message(Box::new(params))), Ok(Some("/c".into())));
    }

    #[test]
    fn malformed_options_are_refused() {
        for bad in [&b"\x12\x05/c"[..], b"\x12", b"\x07", b"\x12\x01\xff"] {
            let options = any("runtimeoptions.v1.Options", bad).write_to_bytes().unwrap();
            let error = config_path(&options, &Form::Plain).unwrap_err().to_string();
            assert!(error.contains("malformed"), "{bad:?}: {error}");
        }
    }
}
