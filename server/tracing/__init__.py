"""OpenTelemetry traces. Only `tracer` knows the library, and nobody imports it where no endpoint is configured."""
