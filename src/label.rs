//! Enums whose values have names, which documents, metrics and the log share. Owns: the macro that
//! makes one. Must not: know any of them.

/// Makes an enum: a name for each value, and the list of all values.
macro_rules! label {
    ($(#[$about:meta])* $vis:vis enum $label:ident {
        $($(#[$of:meta])* $value:ident = $name:literal,)+
    }) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $label { $($(#[$of])* $value,)+ }

        impl $label {
            /// Every value, in the order of their numbers.
            #[allow(dead_code, reason = "not each is counted by its values")]
            $vis const ALL: &'static [Self] = &[$(Self::$value),+];

            /// The name that documents, metrics and the log have for it.
            $vis const fn name(self) -> &'static str {
                match self { $(Self::$value => $name,)+ }
            }
        }
    };
}
pub(crate) use label;
