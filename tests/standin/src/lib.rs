//! A stand-in for ECR, S3, STS and IMDS with a fault script.
