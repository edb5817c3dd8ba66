"""What makes samples: generators and critics of showers and maps, their transforms, fits and fast inference."""
