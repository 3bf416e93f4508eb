"""The HTTP face: any path of an inference API, relayed to the backend that the policy chooses."""
