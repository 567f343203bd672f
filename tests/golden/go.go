//: a block with tabs
func area(radius float64) float64 {
	‸
}
//> square := radius * radius
//> 	return math.Pi * square
//> }
//= square := radius * radius
//= 	return math.Pi * square

//: an error is returned
	value, err := read(path)
	if err != nil {‸
//> 
//> 		return nil, err
//> 	}
//> 	return value, nil
//= 
//= 		return nil, err
//= 	}

//: spaces in a document of tabs
	a := 1
	if a > 0 {‸
//> 
//>         b()
//>         c()
//> 	}
//! wrong indentation

//: a call
	fmt.Println(‸)
//> "area", radius)
//= "area", radius

//: a composite literal
	return Circle{‸}
//> Radius: radius}
//= Radius: radius

//: the cases of a switch
func area(shape Shape) float64 {
	switch shape.kind {‸
}
//> 
//> 	case circle:
//> 		return math.Pi
//> 	default:
//> 		return 0
//> 	}
//> 	return 1
//= 
//= 	case circle:
//= 		return math.Pi
//= 	default:
//= 		return 0
//= 	}

//: the default of a switch
func area(shape Shape) float64 {
	switch shape.kind {
	case circle:
		return math.Pi
	default:‸
	}
}
//> 
//> 		log.Println(shape)
//> 		return 0
//> 	}
//> 	return 1
//= 
//= 		log.Println(shape)
//= 		return 0

//: one case of a switch
func area(shape Shape) float64 {
	switch shape.kind {
	case circle:
		‸
	}
}
//> square := shape.radius * shape.radius
//> 		return math.Pi * square
//> 	case square:
//> 		return shape.side
//= square := shape.radius * shape.radius
//= 		return math.Pi * square

//: a condition over several lines
func area(radius float64) float64 {
	if radius > 0 &&
		radius < 10 {‸
}
//> 
//> 		return math.Pi
//> 	}
//> 	return 0
//= 
//= 		return math.Pi
//= 	}

//: a text that is not indented ends no block
func usage() {‸
//> 
//> 	fmt.Println(`
//> area RADIUS
//> `)
//> 	os.Exit(2)
//> }
//> 
//> func main() {
//= 
//= 	fmt.Println(`
//= area RADIUS
//= `)
//= 	os.Exit(2)
//= }

//: a literal over several lines
func unit() Circle {
	return Circle{‸
//> 
//> 		Radius: 1,
//> 		Center: Point{
//> 			X: 0,
//> 		},
//> 	}
//> }
//= 
//= 		Radius: 1,
//= 		Center: Point{
//= 			X: 0,
//= 		},
//= 	}

//: a call over several lines
func main() {
	http.HandleFunc(‸
//> 
//> 		"/area",
//> 		area,
//> 	)
//> 	http.ListenAndServe()
//= 
//= 		"/area",
//= 		area,
//= 	)

//: no block in a string
func main() {
	fmt.Println("{‸
//> \"area\": 1}")
//> 	fmt.Println()
//= \"area\": 1}")

//: a function in a call
func main() {
	http.HandleFunc("/area", func(w http.ResponseWriter, r *http.Request) {‸
//> 
//> 		fmt.Fprintln(w, "area")
//> 	})
//> 	http.ListenAndServe()
//= 
//= 		fmt.Fprintln(w, "area")
//= 	})

//: the other branch is another completion
func main() {
	if radius > 0 {‸
//> 
//> 		area(radius)
//> 	} else {
//> 		return
//= 
//= 		area(radius)
//= 	}
